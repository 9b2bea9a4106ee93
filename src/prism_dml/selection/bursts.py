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
_NEARLY_ALIKE = 0.5  # of the distance that two samples of a class usually have, at most
_TOGETHER = 0.95  # of the pairs that are nearly alike have one label, if labels were given to whole bursts,
_FEWEST = 100  # and of so many at least: it is no chance
_OUTNUMBERED = (
    3  # times as many samples of a class as of a burst, at least: else the burst is what the class is
)


@torch.no_grad()
def judge_by_bursts(
    embeddings: Tensor,
    labels: Tensor,
    similarities: Tensor,
    neighbours: Tensor,
    nearest: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> LabelJudgement:
    """Judge every label, see `judge_labels`; the samples of a burst count as one, and are judged alike.

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
    return replace(
        judgement,
        suggested=judgement.suggested[burst],
        suggested_probability=judgement.suggested_probability[burst],
        candidates=find_candidates(labels, similarities, neighbours),
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
    mistake. Each of them would vouch for the others, and class means were known by far fewer photographs than there
    are. But where each was labelled by itself, those that are nearly alike say most of each other. So they are taken
    for a burst as far as nearly all pairs that are so near, or nearer, have one label: then labels were given to
    bursts, or all are right.

    Args:
        embeddings: (N, D) float32 unit vectors.
        labels: (N,) given labels.
        similarities: (N, K) cosines to the nearest neighbours, not increasing along a row.
        neighbours: (N, K) their sample numbers.
    """
    from scipy.sparse import coo_array  # slow to import
    from scipy.sparse.csgraph import connected_components

    sums, members = class_sums(embeddings, labels, torch.ones_like(similarities[:, 0]))
    # Of unit vectors x with mean m, half the squared distance of two is 1 - x.x', and 1 - |m|^2 on average.
    usual = 1 - float((sums.square().sum(dim=1) / members.clamp(min=1)).sum() / len(labels))
    near, others = similarities[:, :_LOOKED_AT], neighbours[:, :_LOOKED_AT]
    apart, same = 1 - near, labels[others] == labels[:, None]
    alike = apart <= _NEARLY_ALIKE**2 * usual
    farther, order = apart[alike].sort(stable=True)
    agreeing = same[alike][order].cumsum(0) / torch.arange(1, len(order) + 1, device=labels.device)
    far_enough = (agreeing >= _TOGETHER).nonzero()[-1:]
    if int(far_enough.sum()) < _FEWEST - 1:
        return None
    together = same & (apart <= farther[far_enough].max())
    sample, other = together.nonzero()[:, 0].cpu().numpy(), others[together].cpu().numpy()
    links = coo_array((np.ones(len(sample), np.int8), (sample, other)), shape=(len(labels), len(labels)))
    burst = torch.from_numpy(connected_components(links, directed=False)[1]).to(labels)
    of_burst, of_class = torch.bincount(burst)[burst], torch.bincount(labels)[labels]
    alone = len(labels) + torch.arange(len(labels), device=labels.device)
    found: Tensor = torch.unique(
        torch.where(of_class >= _OUTNUMBERED * of_burst, burst, alone), return_inverse=True
    )[1]
    return found
