"""Whether what is labelled wrong is of any class at all: images of none are in most data that was scraped."""

from __future__ import annotations

import torch
from sklearn.isotonic import isotonic_regression
from torch import Tensor

from prism_dml.selection.candidates import CHUNK

_FEWEST, _MOST = 5, 64  # neighbours that are asked: half as many as a class has members, within these bounds
_BINS = 20  # of the ranks
_LEAST = 5 * _BINS  # suspects, of equal weights, that a density can be told from
_ERRORS = 2  # standard errors by which more suspects are taken to be of a class than it seems


def of_a_class(
    labels: Tensor, neighbours: Tensor, believed: Tensor, suggested: Tensor, weight: Tensor
) -> Tensor:
    """Probability that a suspect is of a class, the suggested one or another, and not of a kind that is none; (N,).

    Images of no class are often of a kind of their own: they lie together, each under some label, and look like members
    of the class whose label most of them have. But fewer of their neighbours have it than of its members', and of the
    others fewer are believed. An image that is hard, or mistaken for another class, has the one in common with them or
    the other, hardly both. So each number of neighbours is ranked among those of the class's believed members. Where
    suspects lie as the members do the ranks are uniform: how many these are, at most, is told by the upper half of the
    ranks; how probable it is of one, by the density at its rank, which falls. Of the two the higher probability holds.

    Nothing is said, that is 1, of few suspects, and where as many as all may be of a class. Where a kind has given a
    class many members that are believed, these hide the rest of it.

    Args:
        labels: (N,) given labels in [0, C).
        neighbours: (N, K) sample numbers, nearest first.
        believed: (N,) bool, whether the label is taken to be right.
        suggested: (N,) the class that a suspect may be of in place of the given one.
        weight: (N,) probability of that class; 0: no suspect.

    Returns:
        (N,) in [0, 1]; 1 for all but suspects. O(N K + N log N) time.

    Source: Bates et al., Ann. Stat. 2023, for outliers by conformal ranks; Storey, JRSS B 2002, for the share of those
    that are uniform; Efron et al., JASA 2001, for the local false discovery rate, here with a density that falls.
    """
    found = torch.ones_like(weight)
    # Of as good a sample of equal weights:
    size = weight.sum() ** 2 / (weight * weight).sum().clamp(min=1e-30)
    if size < _LEAST:
        return found
    near = neighbours[:, : min(max(len(labels) // (2 * int(labels.max() + 1)), _FEWEST), _MOST)]
    suspects, members = (weight > 0).nonzero().squeeze(1), believed.nonzero().squeeze(1)
    theirs = _alike(labels, near, believed, members, labels[members])
    classes, weight = suggested[suspects], weight[suspects]
    belonging = torch.zeros_like(weight)
    for number, other in zip(_alike(labels, near, believed, suspects, classes), theirs, strict=True):
        ranks = _ranks(number, classes, other, labels[members], near.shape[1] + 1)
        belonging = torch.maximum(belonging, _uniform(*ranks, weight, size))
    return found.index_copy_(0, suspects, belonging)


def _alike(labels: Tensor, near: Tensor, believed: Tensor, rows: Tensor, classes: Tensor) -> Tensor:
    """How many neighbours of rows (n,) are labelled as classes (n,) say; and how many are that or believed; (2, n)."""
    counts = []
    for part in torch.split(torch.arange(len(rows), device=rows.device), CHUNK):
        neighbours = near[rows[part]]
        same = labels[neighbours] == classes[part, None]
        counts.append(torch.stack([same.sum(dim=1), (same | believed[neighbours]).sum(dim=1)]))
    return torch.cat(counts, dim=1)


def _ranks(numbers: Tensor, classes: Tensor, members: Tensor, of: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Ranks (n,) of numbers in [0, most) among the members' of their class, each from .. to, in [0, 1]."""
    ordered = (of * most + members).sort().values
    sought = classes * most + numbers
    first, last = (torch.searchsorted(ordered, start) for start in (classes * most, (classes + 1) * most))
    places = last - first + 1  # its own as well
    below, upto = torch.searchsorted(ordered, sought), torch.searchsorted(ordered, sought, right=True)
    return (below - first) / places, (upto + 1 - first) / places


def _uniform(below: Tensor, upto: Tensor, weight: Tensor, size: Tensor) -> Tensor:
    """Probability (n,) that a rank in [below, upto] is one of the uniform ones, of n that count with a weight."""
    edges = torch.arange(_BINS, device=weight.device) / _BINS
    overlap = torch.minimum(upto[:, None], edges + 1 / _BINS) - torch.maximum(below[:, None], edges)
    inside = (overlap.clamp(min=0) / (upto - below)[:, None]).to(weight)  # (n, BINS) share of each rank
    density = weight @ inside / weight.sum() * _BINS
    upper = (density[_BINS // 2 :].mean() / 2).clamp(max=1)  # rounding may lift it above
    share = 2 * (upper + _ERRORS * (upper * (1 - upper) / size).sqrt())
    if share >= 1:
        return torch.ones_like(weight)
    falling = isotonic_regression(
        density.cpu().numpy(), increasing=False
    ).copy()  # torch takes no reversed array
    falling = torch.from_numpy(falling).to(weight)
    return (share / (inside @ falling).clamp(min=1e-30)).clamp(max=1)
