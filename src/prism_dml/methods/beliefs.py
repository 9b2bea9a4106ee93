"""What is believed of the labels of a training set, and as what each is learned."""

from typing import NamedTuple

import torch
from torch import Tensor

from prism_dml.retrieval import neighbour_graph
from prism_dml.selection.bursts import judge_by_bursts
from prism_dml.selection.mistakes import LEAST_RATE, AnyAlike, Mistakes

OTHERS = 4
"""Classes beside the given one that a sample may be learned as: the most probable ones."""

EVIDENCE = 0.5
"""What the judge's evidence on a class counts beside the network's: half, as both see the same image."""

NEIGHBOURS, EXACT_UP_TO = 64, 5_000
"""Nearest neighbours that help to name the class of a sample; on a CPU, of more samples nearly the nearest."""

_LEAST_LISTED = 1e-3  # of the probability: below it a sample is taken to be of none of the listed classes


class Judged(NamedTuple):
    """What is believed of N labels.

    Attributes:
        classes: (N, 1 + OTHERS) the given class, and the most probable ones of the others.
        chances: (N, 1 + OTHERS) probability of each.
        suggested: (N,) the most probable class.
        probability: (N,) of that class.
        nowhere: (N,) probability of no class.
        rate: share of wrong labels, in [0, 1].
        mistakes: how often each class is given each label.
    """

    classes: Tensor
    chances: Tensor
    suggested: Tensor
    probability: Tensor
    nowhere: Tensor
    rate: float
    mistakes: Mistakes

    @property
    def clean(self) -> Tensor:
        """Probability that the given label is right, (N,)."""
        return self.chances[:, 0]


def weigh(judged: Judged, num_classes: int) -> tuple[Tensor, Tensor]:
    """Weights w_k (N, 1 + OTHERS) of the listed classes, w_0 (N,) of any: sum_k w_k + C w_0 = 1.

    The probability q_k of a class is taken as proportional to e_k T_k: what the evidence says for it, and how often the
    given label is seen in that class (`Mistakes`). The weight is e_k^EVIDENCE T_k, up to a constant. What is of no
    class counts as one of the other classes, whichever. Classes that are not listed have no weight, as labels of which
    most are wrong taught too little with it; but a sample that is of none of those listed counts as of no class.
    """
    elsewhere = min(max(judged.rate, LEAST_RATE), 1 - LEAST_RATE) / max(num_classes - 1, 1)
    seen = judged.mistakes.seen(judged.classes, num_classes)
    weights = judged.chances**EVIDENCE * seen ** (1 - EVIDENCE)
    lost = judged.chances.sum(dim=1) + judged.nowhere < _LEAST_LISTED
    anywhere = (judged.nowhere.masked_fill(lost, 1.0) / num_classes) ** EVIDENCE * elsewhere ** (1 - EVIDENCE)
    whole = weights.sum(dim=1) + num_classes * anywhere
    return weights / whole[:, None], anywhere / whole


def judge(embeddings: Tensor, labels: Tensor) -> Judged:
    """Judge labels (N,) by embeddings (N, D); what could not be embedded, a row of zeros, is believed."""
    classes, chances = certain(labels)
    suggested, probability = labels.clone(), torch.ones_like(chances[:, 0])
    nowhere = torch.zeros_like(probability)
    found = (embeddings != 0).any(dim=1).nonzero().squeeze(1)
    present, inside = torch.unique(labels[found], return_inverse=True)
    if len(present) < 2:  # nothing to choose from
        return Judged(classes, chances, suggested, probability, nowhere, 0.0, AnyAlike(0.0))
    rows = embeddings[found]
    judgement = judge_by_bursts(rows, inside, *_nearest(rows), _nearest)
    given, others = judgement.chances[:, :1], judgement.chances[:, 1:]
    best, column = others.topk(min(OTHERS, others.shape[1]), dim=1)
    width = 1 + best.shape[1]
    classes[found, 1:width] = present[judgement.classes.gather(1, 1 + column)]
    chances[found, :width] = torch.cat([given, best], dim=1).to(chances)
    suggested[found] = present[judgement.suggested]
    probability[found] = judgement.suggested_probability.to(probability)
    nowhere[found] = judgement.nowhere.to(nowhere)
    mistakes = judgement.mistakes.among(present, int(labels.max()) + 1)
    return Judged(classes, chances, suggested, probability, nowhere, judgement.noise_rate, mistakes)


def _nearest(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines to the nearest neighbours of unit vectors (N, D), and their numbers."""
    return neighbour_graph(rows, min(NEIGHBOURS, len(rows) - 1), EXACT_UP_TO)


def certain(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Labels (N,) that are believed, as classes and weights (N, 1 + OTHERS)."""
    classes = labels[:, None].repeat(1, 1 + OTHERS)
    weights = torch.zeros(classes.shape, device=labels.device)
    weights[:, 0] = 1
    return classes, weights
