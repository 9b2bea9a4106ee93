"""Estimate of the share of wrong labels from the ranks of the given labels."""

import math

import torch
from torch import Tensor

from prism_dml.selection.exact import ExactModule

CUT = 0.5
"""Where the lower part of the ranks begins: larger is less biased by hard clean samples, but varies more."""


def implausibility(scores: Tensor, given: Tensor, present: Tensor, known: Tensor, cut: float = CUT) -> Tensor:
    """How much each sample speaks for wrong labels; its mean estimates their share (`mean_rate`).

    The rank of a sample's given class among all classes, by similarity, works as a p-value. If the label is wrong
    at random, every rank but the first is equally likely; if it is right, the rank is near the top. The ranks in
    the lower part therefore come from wrong labels, whose number follows (Storey's estimate of the share of true
    null hypotheses). Clean data have next to no ranks there, hence an estimate of about 0. Labels that are wrong
    in a systematic way (always the most similar class) rank high and are underestimated.

    Args:
        scores: (B, C) similarity to each class, -inf to those that cannot be compared with.
        given: (B,) similarity to the given class.
        present: (C,) whether a class can be compared with.
        known: (B,) whether a sample can be with its given class.
        cut: where the lower part begins, in [0, 1).

    Returns:
        (B,) zero for a rank in the upper part; in the lower part the inverse of the share of wrong labels that
        fall there; NaN where there is nothing to compare.

    Source: Storey, J. R. Stat. Soc. B 64 (2002), eq. 6; ranks as p-values are ours.
    """
    others = present.sum() - 1  # ()
    # Counted in floating point, exact to 16 million classes: booleans are several times slower to write and to add.
    above = torch.gt(scores, given[:, None], out=torch.empty_like(scores))  # (B, C)
    rank = above.sum(dim=1)  # (B,) 0: the most similar class
    first = (cut * others).floor() + 1  # the lower part has the ranks first .. others
    share = (others + 1 - first) / others.clamp(min=1)  # of wrong labels that fall there
    return torch.where(known & (others > 0), (rank >= first) / share.clamp(min=1e-6), math.nan)


def mean_rate(evidence: Tensor) -> Tensor:
    """The share of wrong labels, () in [0, 0.95], from (N,) `implausibility`; 0 without any evidence."""
    return evidence.nanmean().nan_to_num(0.0).clamp(0.0, 0.95)


class NoiseRateEstimator(ExactModule):
    """Share of wrong labels among the samples seen last, see `implausibility`.

    Args:
        capacity: number of recent samples that the estimate rests on.
    """

    evidence: Tensor
    seen: Tensor

    def __init__(self, capacity: int = 4096) -> None:
        super().__init__()
        self.register_buffer("evidence", torch.full((capacity,), math.nan))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, evidence: Tensor) -> Tensor:
        """Take in the (B,) `implausibility` of a batch and return the estimate, ()."""
        evidence = evidence[-len(self.evidence) :]
        slots = (self.seen + torch.arange(len(evidence), device=evidence.device)) % len(self.evidence)
        self.evidence[slots] = evidence.to(self.evidence)
        self.seen += len(evidence)
        return self.estimate

    @property
    def estimate(self) -> Tensor:
        """The current estimate, (); 0 before the first sample."""
        return mean_rate(self.evidence)
