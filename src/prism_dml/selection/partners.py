"""Which one class each class is taken for by mistake, where a class has too few samples to ask that of every pair."""

import math

import torch
from torch import Tensor

from prism_dml.selection.candidates import ClassEvidence

_MOST_TIMES = 3
"""So many times as many samples as a class the label of its partner may have. Of a class with hardly a member it could
else be said that all near it are its own."""


def find_partners(prior: Tensor, evidence: ClassEvidence, members: Tensor) -> Tensor:
    """For each class the label, not its own, under which the evidence sees most of it; (C,), -1 for none.

    O(n M) memory, however many classes there are.

    Args:
        prior: (n, M) probability of each candidate before the label is seen.
        evidence: on these n samples.
        members: (C,) number of samples given each class.
    """
    num_classes, labels = len(members), evidence.classes[:, :1].expand_as(evidence.classes)
    told = (evidence.stands_for == 1) & (evidence.classes != labels)  # what stands for many is no sign of one
    told &= members[labels] <= _MOST_TIMES * members[evidence.classes]
    numbers = (evidence.classes * num_classes + labels)[told]
    pairs, place = torch.unique(numbers, return_inverse=True)
    mass = prior.new_zeros(len(pairs)).index_add_(0, place, prior[told])
    order = mass.sort(stable=True).indices
    pairs, partners = pairs[order], torch.full((num_classes,), -1, device=prior.device)
    # The last of each class has the most; of the others none is written, as which comes last is not settled.
    by_class = (pairs // num_classes).sort(stable=True)
    last = torch.ones_like(by_class.values, dtype=torch.bool)
    last[:-1] = by_class.values[1:] != by_class.values[:-1]
    chosen = pairs[by_class.indices[last]]
    partners[chosen // num_classes] = chosen % num_classes
    return partners


def cost_of_partners(count: int, num_classes: int) -> float:
    """By how much partners must make `count` labels more likely, in nats, to be more than chance.

    To name one of the other classes for each class takes log(C - 1), and a share that n / C samples tell another half
    of log(n / C).

    Source: minimum description length, Rissanen, Automatica 14 (1978).
    """
    named = math.log(max(num_classes - 1, 2))
    return num_classes * (named + 0.5 * math.log(max(count / num_classes, 1.0)))
