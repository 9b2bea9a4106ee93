"""Photographs taken together: nearly alike and under one label, a burst of them counts as one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from prism_dml.selection.candidates import find_candidates
from prism_dml.selection.cross_fit import judge_labels
from prism_dml.selection.discriminant import class_sums
from prism_dml.selection.label_judgement import LabelJudgement

_LOOKED_AT = 8  # nearest neighbours: the other ones of a larger burst are found through these
# Shares of the distance that two samples of a class usually have: as far as bursts show.
_NEARLY_ALIKE = (0.6, 0.5, 0.4)
_ONE_LABEL = 0.95  # of the bursts have one label only, if labels were given to bursts
_FEWEST = 30  # bursts: it is no chance that these have
_MOST_OF_CLASS = 3  # a burst of more than a third of its class counts as three: it is what the class is
_TOO_LARGE = 0.05  # of the samples in such ones: more, and what is found are no bursts, but classes


@torch.no_grad()
def judge_by_bursts(
    embeddings: Tensor,
    labels: Tensor,
    similarities: Tensor,
    neighbours: Tensor,
    nearest: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> LabelJudgement:
    """Judge every label, see `judge_labels`; the samples of a burst count as one, and are judged alike.

    `mistakes` are then those of bursts, and `rate_error` knows that there are no more chances than bursts. Where there
    are some, neighbours are searched for once more.

    Args:
        embeddings: (N, D) float32 unit vectors.
        labels: (N,) given labels, each of [0, C) at least once, C at least 2.
        similarities: (N, K) cosines to the nearest neighbours, not increasing along a row.
        neighbours: (N, K) their sample numbers.
        nearest: finds these of other unit vectors.
    """
    burst = find_bursts(embeddings, labels, similarities, neighbours)
    if burst is None:
        return judge_labels(embeddings, labels, similarities, neighbours)
    count = int(burst.max()) + 1
    means = normalize(
        embeddings.new_zeros(count, embeddings.shape[1]).index_add_(0, burst, embeddings), dim=1
    )
    of_bursts = labels.new_zeros(count).index_copy_(0, burst, labels)
    judgement = judge_labels(means, of_bursts, *nearest(means))
    # Of the mean over bursts, each as likely wrong as another; over samples, a large one's chance counts for more.
    size = torch.bincount(burst).double()
    unequal = float((count * size.square().sum()).sqrt() / size.sum())
    return replace(
        judgement,
        find_rate_error=lambda: unequal * judgement.rate_error,
        suggested=judgement.suggested[burst],
        suggested_probability=judgement.suggested_probability[burst],
        candidates=replace(
            find_candidates(labels, similarities, neighbours), affinity=judgement.candidates.affinity[burst]
        ),
        classes=judgement.classes[burst],
        chances=judgement.chances[burst],
        nowhere=judgement.nowhere[burst],
        other_kind=judgement.other_kind[burst],
    )


def find_bursts(
    embeddings: Tensor, labels: Tensor, similarities: Tensor, neighbours: Tensor
) -> Tensor | None:
    """The burst that each sample is of, (N,) in [0, B), its own for most; None: labels were not given to bursts.

    A wrong label that was given to twenty photographs of one thing, taken in a burst or cut from a video, is one
    mistake. Each of them would vouch for the others, and a class would seem to be known by twenty times as many samples
    as it is. But if each was labelled by itself, no sample is better evidence on it than those that are nearly alike.
    So what is linked by small distances is a burst only if nearly everything that is so linked has one label. Where
    that holds for several distances, by the largest one. O(N K) time and memory.

    Args:
        embeddings: (N, D) float32 unit vectors.
        labels: (N,) given labels.
        similarities: (N, K) cosines to the nearest neighbours, not increasing along a row.
        neighbours: (N, K) their sample numbers.
    """
    sums, members = class_sums(embeddings, labels, torch.ones_like(similarities[:, 0]))
    # Of unit vectors x with mean m, half the squared distance of two is 1 - x.x', and 1 - |m|^2 on average.
    usual = 1 - float((sums.square().sum(dim=1) / members.clamp(min=1)).sum() / len(labels))
    of_class = members.long()[labels]
    for share in _NEARLY_ALIKE:
        linked = _linked(1 - similarities[:, :_LOOKED_AT] <= share**2 * usual, neighbours)
        size, count = torch.bincount(linked), len(members)
        several = size > 1
        pairs, burst = torch.unique(linked * count + labels, return_inverse=True)
        one_label = (torch.bincount(pairs // count) == 1)[several].float()
        too_large = several[linked] & (_MOST_OF_CLASS * size[linked] > of_class)
        if (
            len(one_label) >= _FEWEST
            and one_label.mean() >= _ONE_LABEL
            and too_large.float().mean() <= _TOO_LARGE
        ):
            return _in_pieces(burst, of_class)
    return None


def _linked(near: Tensor, neighbours: Tensor) -> Tensor:
    """What each sample is linked with, (N,) in [0, L), by which of its first neighbours are near, (N, k) bool."""
    from scipy.sparse import coo_array  # slow to import
    from scipy.sparse.csgraph import connected_components

    sample = near.nonzero()[:, 0].cpu().numpy()
    other = neighbours[:, : near.shape[1]][near].cpu().numpy()
    links = coo_array((np.ones(len(sample), np.int8), (sample, other)), shape=(len(near), len(near)))
    return torch.from_numpy(connected_components(links, directed=False)[1]).to(neighbours)


def _in_pieces(burst: Tensor, of_class: Tensor) -> Tensor:
    """Numbers (N,) from 0 on of bursts, cut so that none is more than a third of its class (N,); a sample at least."""
    order = burst.argsort(stable=True)
    size = torch.bincount(burst)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device) - (size.cumsum(0) - size)[burst[order]]
    piece = place // (of_class // _MOST_OF_CLASS).clamp(min=1)
    found: Tensor = torch.unique(burst * (int(piece.max()) + 1) + piece, return_inverse=True)[1]
    return found
