"""Whether what is labelled wrong is of any class at all: images of none are in most data that was scraped."""

from __future__ import annotations

import torch
from torch import Tensor

_FEWEST, _MOST = 5, 64  # neighbours that are asked: half as many as a class has members, within these bounds
_BINS = 20  # of the ranks
_ERRORS = 2  # standard errors by which more samples are taken to be of a class than it seems


def of_a_class(
    labels: Tensor, neighbours: Tensor, believed: Tensor, suggested: Tensor, weight: Tensor
) -> Tensor:
    """Probability that a sample is of the class suggested for it or of another one, (N,), and not of none.

    A sample of a class lies among its members as they lie among each other: as many of its neighbours are labelled so.
    Images of no class are often of a kind of their own. They lie together, each under some label, and look like members
    of the class whose label most of them have; but of their neighbours fewer have it than of its members'.

    The rank of that number among those of the class's believed members is uniform for samples of the class. How many
    they are is told by the upper half of the ranks, at most; how probable it is of one, by the density of all ranks at
    its own, which falls.

    Args:
        labels: (N,) given labels in [0, C).
        neighbours: (N, K) sample numbers, nearest first.
        believed: (N,) bool, whether the label is taken to be right.
        suggested: (N,) the class that a sample may be of in place of the given one.
        weight: (N,) of each sample, at least 0; 0 where nothing is suggested.

    Returns:
        (N,) in [0, 1]; 1 where nothing shows that any is of no class. O(N K + N log N) time.

    Source: Storey, JRSS B 2002, for the share of uniform ranks; Efron et al., JASA 2001, for the local false discovery
    rate, with a density that falls (Strimmer, BMC Bioinformatics 2008); conformal ranks: Vovk et al. 2005.
    """
    count = int(labels.max()) + 1
    asked = labels[neighbours[:, : min(max(len(labels) // (2 * count), _FEWEST), _MOST)]]
    below, upto = _ranks(
        (asked == suggested[:, None]).sum(dim=1),
        suggested,
        (asked == labels[:, None]).sum(dim=1)[believed],
        labels[believed],
        asked.shape[1] + 1,
    )
    edges = torch.arange(_BINS, device=labels.device) / _BINS
    overlap = torch.minimum(upto[:, None], edges + 1 / _BINS) - torch.maximum(below[:, None], edges)
    inside = (overlap.clamp(min=0) / (upto - below)[:, None]).to(weight)  # (N, BINS) share of each rank
    total = weight.sum().clamp(min=1e-30)
    density = (weight[:, None] * inside).sum(dim=0) / total * _BINS
    size = total**2 / (weight * weight).sum().clamp(min=1e-30)  # of a sample of equal weights
    share = 2 * _at_most(density[_BINS // 2 :].mean() / 2, size)
    if share >= 1:
        return torch.ones_like(weight)
    return inside @ (share / _falling(density).clamp(min=1e-30)).clamp(max=1)


def _ranks(numbers: Tensor, classes: Tensor, members: Tensor, of: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Ranks (n,) of numbers in [0, most) among the members' of their class, each from .. to, in [0, 1]."""
    ordered = (of * most + members).sort().values
    sought = classes * most + numbers
    first, last = (torch.searchsorted(ordered, start) for start in (classes * most, (classes + 1) * most))
    places = last - first + 1  # its own as well
    below, upto = torch.searchsorted(ordered, sought), torch.searchsorted(ordered, sought, right=True)
    return (below - first) / places, (upto + 1 - first) / places


def _at_most(share: Tensor, size: Tensor) -> Tensor:
    """The upper end of the interval for a share, (), that was seen in a sample (Wilson, JASA 1927); 1 of no sample."""
    more = _ERRORS**2 / size.clamp(min=1e-9)
    return (share + more / 2 + (share * (1 - share) * more + more**2 / 4).sqrt()) / (1 + more)


def _falling(density: Tensor) -> Tensor:
    """The nearest densities (BINS,), in least squares, that do not rise."""
    sums = torch.cat([density.new_zeros(1), density.cumsum(dim=0)])
    place = torch.arange(len(density), device=density.device)
    length = (place[None, :] - place[:, None] + 1).clamp(min=1)
    means = (sums[None, 1:] - sums[:-1, None]) / length  # [a, b]: of the bins from a to b
    highest = means.flip(1).cummax(dim=1).values.flip(1)  # [a, i]: of those to i or beyond
    return highest.cummin(dim=0).values.diagonal()  # [i, i]: from i or before
