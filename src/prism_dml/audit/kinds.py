"""Why a label is suspicious: wrong, of no class, a duplicate's rival, or of a class that is another's twin."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prism_dml.selection.candidates import Candidates
from prism_dml.selection.label_judgement import LabelJudgement
from prism_dml.selection.label_model import FAR

KINDS = ("wrong label", "outlier", "conflicting duplicate", "ambiguous classes")
"""What can be said of a sample, besides nothing."""

_WRONG, _OUTLIER, _DUPLICATE, _AMBIGUOUS = range(1, 1 + len(KINDS))
_IDENTICAL = 1e-3  # distance (1 - cosine) below which two embeddings are of one thing
_NEAREST = 16  # neighbours that tell whether classes are mixed
_MIXED = 0.7  # of a class's votes within itself that another one of its size has to have, in both directions


@dataclass(frozen=True)
class Verdict:
    """What is said of each of N samples in the end.

    Attributes:
        suspicious: (N,) bool, whether the label is at least as likely wrong as right.
        score: (N,) probability that the given label is right.
        suggested: (N,) the most probable class.
        suggested_score: (N,) its probability.
        kind: (N,) 0, or 1 + the place in `KINDS`.
        pairs: (P, 2) classes that are mixed as if they were one.
    """

    suspicious: Tensor
    score: Tensor
    suggested: Tensor
    suggested_score: Tensor
    kind: Tensor
    pairs: Tensor


def settle(judgement: LabelJudgement, labels: Tensor, similarities: Tensor, neighbours: Tensor) -> Verdict:
    """Judge labels together where they exclude each other, and tell the kinds of issues apart.

    Args:
        judgement: of N samples.
        labels: (N,) given labels.
        similarities: (N, K) to the nearest neighbours.
        neighbours: (N, K) their numbers.
    """
    score, suggested, believed = (
        judgement.clean_probability,
        judgement.suggested,
        judgement.suggested_probability,
    )
    conflicts = conflicting_twins(labels, similarities, neighbours)
    doubled = conflicts.any(dim=1)
    # Of two twins' labels at most one is right.
    rival, twin = best_rival(score, neighbours, conflicts)
    shared = score / (score + rival).clamp(min=1e-12)
    beaten = doubled & (suggested == labels) & (shared < 0.5)  # of equals neither is
    score = torch.where(doubled, torch.minimum(score, shared), score)
    suggested = torch.where(beaten, labels[twin], suggested)
    believed = torch.where(beaten, torch.minimum(rival, 1 - shared), believed)
    suspicious = score <= 0.5
    stray = suspicious & (judgement.other_kind > judgement.suggested_probability)
    suggested = torch.where(stray, labels, suggested)  # none is likelier than any
    believed = torch.where(suggested == labels, score, believed)

    pairs = ambiguous_pairs(judgement.candidates, labels, score.float())
    partner = torch.stack([pairs, pairs.flip(1)]).flatten(0, 1)  # (2 P, 2)
    count = int(labels.max()) + 1
    mixed = torch.isin(labels, partner) & ~suspicious
    mixed |= suspicious & torch.isin(labels * count + suggested, partner[:, 0] * count + partner[:, 1])
    kind = torch.where(suspicious, _WRONG, 0)
    kind[mixed] = _AMBIGUOUS
    kind[suspicious & (judgement.candidates.affinity < FAR)] = _OUTLIER
    kind[suspicious & doubled & ~mixed] = _DUPLICATE  # under two names of one thing both are right
    kind[stray] = _OUTLIER
    return Verdict(suspicious, score, suggested, believed, kind, pairs)


def conflicting_twins(labels: Tensor, similarities: Tensor, neighbours: Tensor) -> Tensor:
    """Which neighbours are near-identical and labelled otherwise; (N, K) bool.

    Near-identical is not just near: a tenth of what is usual between nearest neighbours, where classes are tight.
    """
    distance = 1 - similarities
    usual = distance[:, 0].median()
    near = distance < (usual / 10).clamp(1e-6, _IDENTICAL)
    return near & (labels[neighbours] != labels[:, None])


def best_rival(clean_probability: Tensor, neighbours: Tensor, conflicts: Tensor) -> tuple[Tensor, Tensor]:
    """Probability (N,) of the best supported label among a sample's conflicting twins, and that twin's number (N,)."""
    support, place = (clean_probability[neighbours] * conflicts).max(dim=1)
    return support, neighbours.gather(1, place[:, None]).squeeze(1)


def ambiguous_pairs(candidates: Candidates, labels: Tensor, trust: Tensor) -> Tensor:
    """Pairs of classes whose trusted samples are each other's neighbours as much as their own; (P, 2), sorted.

    Members of the one have to get, of the votes on the other, at least 70 % as many as each of the other's own.

    Args:
        candidates: of all N samples.
        labels: (N,) given labels.
        trust: (N,) weight of each sample, in [0, 1].
    """
    count = int(labels.max()) + 1
    mass = torch.zeros(count, dtype=torch.float64, device=labels.device).index_add_(0, labels, trust.double())
    pairs, totals = _votes_between(candidates, labels, trust, count)
    voter, voted = pairs // count, pairs % count
    inside = torch.zeros_like(mass)
    own = voter == voted
    inside[voter[own]] = totals[own]
    # Votes of the class itself come from one member less: nobody votes for himself.
    ratio = (totals / mass[voted].clamp(min=1e-9)) / (
        inside[voter] / (mass[voter] - 1).clamp(min=1e-9)
    ).clamp(min=1e-9)
    strong = ~own & (ratio >= _MIXED) & (mass[voter] > 2) & (mass[voted] > 2)
    forward = pairs[strong]
    mutual = torch.isin(forward, voted[strong] * count + voter[strong])
    forward = forward[mutual].sort().values
    forward = forward[forward // count < forward % count]
    return torch.stack([forward // count, forward % count], dim=1)


def _votes_between(
    candidates: Candidates, labels: Tensor, trust: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Numbers a * C + b of the pairs of classes of which b has votes on samples of a, sorted, and their sums."""
    nearest = candidates.neighbours[:, :_NEAREST]
    votes = candidates.kernel[:, :_NEAREST] * trust[nearest]
    votes = votes / votes.sum(dim=1, keepdim=True).clamp(min=1e-30) * trust[:, None]
    keys = labels[:, None] * count + labels[nearest]
    pairs, where = torch.unique(keys, return_inverse=True)
    sums = torch.zeros(len(pairs), dtype=torch.float64, device=keys.device)
    return pairs, sums.index_add_(0, where.flatten(), votes.flatten().double())
