"""What is believed of samples once the label that each was given is seen."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Posterior:
    """What is believed of n samples and their M candidates after the given label is seen.

    Attributes:
        classes: (n, M) probability that the sample belongs to each candidate, the given class first; what is missing
            to 1 is that of no class.
        wins: (n,) bool, whether the given class was the most probable before the label was seen.
    """

    classes: Tensor
    wins: Tensor

    @property
    def knowledge(self) -> Tensor:
        """How many of the right labels the evidence alone would have given, () in [0, 1]."""
        return (self.wins.sum() / self.classes[:, 0].sum().clamp(min=1e-9)).clamp(max=1)

    def trust(self) -> Tensor:
        """Weight (n,) in [0, 1] of each sample as a member of its given class.

        The probability that the label is right, where the evidence knows half of the classes or more: where it hardly
        does, doubts are mostly chance, and would confirm themselves.
        """
        return 1 - (2 * self.knowledge).clamp(max=1) * (1 - self.classes[:, 0])


def explain(prior: Tensor, outside: Tensor, seen: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Probability of each candidate together with the given label, (n, M), and of the label, (n,).

    Args:
        prior: (n, M) probability of each candidate, were all of some class.
        outside: (n,) probability of no class, whose label is any of `num_classes`.
        seen: (n, M) how often each candidate class has the given label.
        num_classes: number of classes.
    """
    classes = prior * seen * (1 - outside[:, None])
    return classes, (classes.sum(dim=1) + outside / num_classes).clamp(min=1e-30)
