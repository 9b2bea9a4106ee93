"""What every method is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from prism_dml.methods.config import MethodConfig
from prism_dml.models.embedder import Embedder
from prism_dml.selection import Selection

EmbedAll = Callable[[nn.Module], Tensor]
"""Gives a network (images -> vectors) the whole training set without augmentation: network -> (N, D)."""


@dataclass(frozen=True)
class TrainingSet:
    """What a method may know of the data before it starts."""

    labels: Tensor
    """(N,) given labels in [0, num_classes)."""
    num_classes: int

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self.labels)


class StepResult(NamedTuple):
    """What a method makes of a batch."""

    loss: Tensor
    """() scalar to minimise."""
    kept: Tensor
    """(B,) bool, the samples whose labels are believed; see `Method.learns_from_rejected`."""


class Method(nn.Module):
    """A way of learning an embedding from labels of which some are wrong.

    All that it remembers is in `state_dict`: the embedder, further networks, proxies, memory, thresholds and counters.

    Args:
        embedder: network that maps images to unit embeddings.
        data: given labels of the training set.
        config: the method's settings.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    clean_only: ClassVar[bool] = False
    """Whether training sees only the samples whose labels are truly right (it needs to know them)."""
    selects: ClassVar[bool] = False
    """Whether the method judges labels, that is, has a `judge`."""
    learns_from_rejected: ClassVar[bool] = False
    """Whether samples that are not kept teach, too; if not, an update is left out where a batch keeps none."""
    reads: ClassVar[frozenset[str]] = frozenset()
    """Settings of `MethodConfig` that it has a use for."""
    rounds: ClassVar[int] = 1
    """How many times the budget of steps is trained; the last round trains `embedder`."""

    @classmethod
    def check(cls, config: MethodConfig) -> None:
        """Say what is wrong with the settings before an image is read; ValueError."""

    def __init__(self, embedder: Embedder, data: TrainingSet, config: MethodConfig) -> None:
        super().__init__()
        self.check(config)
        self.embedder = embedder
        self.embedding_dim = int(embedder.config["embedding_dim"])
        self.data = data

    def on_round_start(self, number: int, embed_all: EmbedAll) -> None:
        """Prepare round `number`, the first being 0; most methods have only that one."""

    def look_every(self, epoch: int, steps: int) -> int:
        """Steps from one call of `on_epoch_start` to the next, at least 1: an epoch, unless a method says otherwise.

        Args:
            epoch: steps in an epoch of the data.
            steps: steps in a round.
        """
        return epoch

    def on_epoch_start(self, embed_all: EmbedAll) -> None:
        """Look at the whole training set; most methods have no need to."""

    def decided(self) -> Tensor | None:
        """Whether each label is believed, (N,) bool, of all at once; None: as `StepResult.kept` last said."""
        return None

    def draw_weights(self) -> Tensor | None:
        """How often each sample is to be drawn beside the others, (N,) in [0, 1]; None: as often as its class says.

        Another tensor than before where `on_epoch_start` has changed it.
        """
        return None

    def forward(self, images: Tensor, labels: Tensor, index: Tensor) -> StepResult:
        """Score a batch and learn from it.

        Args:
            images: (B, 3, S, S) normalised.
            labels: (B,) given labels in [0, C).
            index: (B,) sample numbers in [0, N).
        """
        raise AssertionError(f"{type(self).__name__} does not say how it learns")

    def on_update(self) -> None:
        """Remember what the last step learned from, once the networks are updated."""

    def proxies(self) -> list[nn.Parameter]:
        """Parameters that stand for classes and have a learning rate of their own."""
        return []

    def networks(self) -> dict[str, Embedder]:
        """The networks to save, by the names of their folders; "model" is the one to evaluate.

        They may share weights with what is trained: to be used at once, and left in the mode they were in.
        """
        return {"model": self.embedder}

    def observer(self) -> nn.Module:
        """Images -> what `judge` is shown: the embeddings of networks()["model"], and what else it needs."""
        return self.networks()["model"]

    def judge(self, seen: Tensor, labels: Tensor, index: Tensor) -> tuple[Selection, float]:
        """Judge the whole training set, and estimate its share of wrong labels; for methods that select.

        Args:
            seen: what `observer` shows, without augmentation: (N, D) embeddings, and perhaps more numbers beside them.
            labels: (N,) given labels.
            index: (N,) sample numbers.
        """
        raise AssertionError(f"{type(self).__name__} does not select")

    @property
    def noise_rate_estimate(self) -> float | None:
        """The share of wrong labels that the method reckons with, or None if it has no opinion."""
        return None
