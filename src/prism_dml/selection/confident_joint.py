"""How many samples of each class have each label, counted where the evidence is as sure as it usually is."""

import torch
from torch import Tensor

from prism_dml.selection.candidates import ClassEvidence
from prism_dml.selection.posterior import explain

_LEAST_MISSED = 1e-6  # of the labels of a class, so that there is an interval
_HALVINGS = 30  # of the interval that a share is in


def confident_joint(prior: Tensor, candidates: Tensor, num_classes: int) -> Tensor:
    """Samples of class k with label l, (C, C) float64; hard ones are counted as wrong ones.

    A sample counts as of the likeliest of the classes that are at least as probable for it as they are, on average, for
    the samples under their label; of none, if no class is. What counts is scaled to as many under each label as have
    it. A class that is never the likeliest has one, with the right label.

    Args:
        prior: (n, M) probability of each candidate before the label is seen.
        candidates: (n, M) class numbers, the given one first.
        num_classes: C. O(n C) memory.

    Source: Northcutt et al., "Confident Learning", JAIR 2021, eq. 1 and 2.
    """
    labels = candidates[:, 0]
    places = torch.arange(len(labels), device=prior.device)[:, None] * num_classes + candidates
    chances = prior.new_zeros(len(labels) * num_classes).index_add_(0, places.flatten(), prior.flatten())
    chances = chances.view(-1, num_classes)  # (n, C)
    members = torch.bincount(labels, minlength=num_classes)
    own = chances.gather(1, labels[:, None]).squeeze(1)
    usual = chances.new_zeros(num_classes).index_add_(0, labels, own) / members.clamp(min=1)
    usual = usual.masked_fill(members == 0, torch.inf)  # of a class that nothing is known of, none is
    eligible = chances >= usual
    counted = eligible.any(dim=1)
    likeliest = chances.masked_fill(~eligible, -1).argmax(dim=1)
    joint = chances.new_zeros(num_classes * num_classes, dtype=torch.float64)
    joint.index_add_(0, (likeliest * num_classes + labels)[counted], torch.ones_like(own[counted]).double())
    joint = joint.view(num_classes, num_classes)
    joint = joint / joint.sum(dim=0).clamp(min=1) * members
    right = torch.eye(num_classes).to(joint)
    return torch.where(joint.sum(dim=1, keepdim=True) == 0, right, joint)


def expected_pairs(counts: Tensor, wrong: Tensor) -> Tensor:
    """How often each class has each label, (C, C): the wrong ones as counted, as often as both say, geometric mean.

    Args:
        counts: (C, C) samples of each class with each label, above 0.
        wrong: (C,) share of wrong labels of each class by another estimate.
    """
    shares = counts / counts.sum(dim=1, keepdim=True)
    counted = 1 - shares.diagonal()
    wrong = (wrong * counted).sqrt()
    return torch.diag(1 - wrong) + shares.fill_diagonal_(0) * (wrong / counted)[:, None]


def pairs_as_often(
    wrong: Tensor, counted: Tensor, prior: Tensor, outside: Tensor, evidence: ClassEvidence
) -> Tensor | None:
    """How often each class has each label, (C, C): the mistakes as counted, in such a share that so many are wrong.

    None where hardly any mistakes were counted.

    Args:
        wrong: () mean probability of a wrong label that is to come out, of n samples.
        counted: (C, C) how often each class has each label, as counted.
        prior: (n, M) see `explain`.
        outside: (n,) see `explain`.
        evidence: on these samples.
    """
    right, count = torch.eye(len(counted)).to(counted), len(counted)
    known, label = explain(prior, outside, evidence.of_pairs(right), count)
    doubted, label_doubted = explain(prior, outside, evidence.of_pairs(counted), count)

    def lost(share: float) -> Tensor:
        """Mean probability of a wrong label by a share of the mistakes; both are linear in it."""
        right_ones = known[:, 0].lerp(doubted[:, 0], share)
        return 1 - (right_ones / label.lerp(label_doubted, share)).mean()

    low, high = 0.0, 1 / max(float(1 - counted.diagonal().min()), _LEAST_MISSED)
    if lost(high) < wrong:
        return None
    for _ in range(_HALVINGS):
        share = (low + high) / 2
        if lost(share) < wrong:
            low = share
        else:
            high = share
    return right.lerp(counted, low)
