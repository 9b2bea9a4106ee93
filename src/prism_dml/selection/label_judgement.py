"""What is believed of the labels of a data set."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from prism_dml.selection.candidates import Candidates
from prism_dml.selection.mistakes import Mistakes


@dataclass(frozen=True)
class LabelJudgement:
    """What is believed of each label of a data set.

    Attributes:
        suggested: (N,) the most probable class.
        suggested_probability: (N,) of that class.
        find_rate_error: finds `rate_error`, in a tenth of the time that all else took, which a run need not spend.
        candidates: what the neighbours say.
        classes: (N, M) the classes considered, the given one first; it again where there are fewer.
        chances: (N, M) probability of each; what is missing to 1 is that of all others, and of none.
        nowhere: (N,) probability of no class,
        other_kind: (N,) and of that, of a kind that is none, see `of_a_class`.
        mistakes: how often each class is given each label.
    """

    suggested: Tensor
    suggested_probability: Tensor
    find_rate_error: Callable[[], float]
    candidates: Candidates
    classes: Tensor
    chances: Tensor
    nowhere: Tensor
    other_kind: Tensor
    mistakes: Mistakes

    @property
    def clean_probability(self) -> Tensor:
        """That the given label is right, (N,)."""
        return self.chances[:, 0]

    @property
    def rate_error(self) -> float:
        """Standard error of `noise_rate`; found anew each time."""
        return self.find_rate_error()

    @property
    def noise_rate(self) -> float:
        """Share of wrong labels in [0, 1], the mean of what is missing to 1."""
        return float(1 - self.clean_probability.contiguous().mean())
