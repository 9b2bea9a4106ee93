"""What a selector says of a batch."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Selection:
    """What PRISM says of a batch.

    Attributes:
        keep: (B,) bool, whether the label is trusted.
        clean_probability: (B,) float32 in [0, 1]; 1 where the given class has nothing to compare with, 0 where the
            embedding is not finite: that is never kept.
        threshold: () float32, the probability below which samples were rejected.
        suggested_label: (B,) most similar class; the given label where there is nothing to compare with.
        margin: (B,) similarity to the given class less that to the best other class; 0 where unknown.
    """

    keep: Tensor
    clean_probability: Tensor
    threshold: Tensor
    suggested_label: Tensor
    margin: Tensor


@dataclass(frozen=True)
class CalibratedSelection(Selection):
    """One whose probabilities are calibrated: of labels with a clean_probability of 0.9, about nine in ten are right.

    Attributes:
        suggested_probability: (B,) float32 in [0, 1], that the suggested label is the right one.
    """

    suggested_probability: Tensor
