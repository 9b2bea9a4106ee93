"""Which one class each class is taken for by mistake, where a class has too few samples to ask that of every pair."""

import math

import torch
from torch import Tensor

from prism_dml.selection.candidates import ClassEvidence

_MOST_TIMES = 3
"""So many times as many samples as a class the label of its partner may have. Of a class with hardly a member it could
else be said that all near it are its own."""

_ONE_WAY = 2
"""Of two classes that would be each other's partners, that one has the other under whose label so many times as large a
part is seen of it as the other way round."""


def find_partners(prior: Tensor, evidence: ClassEvidence, members: Tensor) -> Tensor:
    """For each class the label, not its own, under which the evidence sees most of it; (C,) on the CPU, -1 for none.

    Of two classes that would be each other's at most one has the other (`_ONE_WAY`): the given labels do not tell
    whether two are exchanged, or look alike and are labelled rightly. O(n M) memory, however many classes there are.

    Args:
        prior: (n, M) probability of each candidate before the label is seen.
        evidence: on these n samples.
        members: (C,) number of samples given each class.
    """
    count, labels = len(members), evidence.classes[:, :1].expand_as(evidence.classes)
    told = (evidence.stands_for == 1) & (evidence.classes != labels)  # what stands for many is no sign of one
    told &= members[labels] <= _MOST_TIMES * members[evidence.classes]
    pairs, place = torch.unique((evidence.classes * count + labels)[told], return_inverse=True)
    mass = torch.zeros(len(pairs), dtype=torch.float64, device=prior.device)
    mass.index_add_(0, place, prior[told].double())
    order = mass.sort(stable=True).indices
    order = order[(pairs[order] // count).sort(stable=True).indices]
    classes = pairs[order] // count
    # The last of each class has the most; of the others none is written, as which comes last is not settled.
    last = torch.ones_like(classes, dtype=torch.bool)
    last[:-1] = classes[1:] != classes[:-1]
    order, classes = order[last], classes[last]
    partners, part = torch.full((count,), -1, device=prior.device), mass.new_zeros(count)
    partners[classes] = pairs[order] % count
    part[classes] = mass[order] / members[partners[classes]]  # of the samples under the partner's label
    mutual = (partners >= 0) & (partners[partners] == torch.arange(count, device=prior.device))
    return partners.masked_fill(mutual & (part < _ONE_WAY * part[partners]), -1).cpu()


def cost_of_partners(count: int, num_classes: int) -> float:
    """By how much partners must make `count` labels more likely, in nats, to be more than chance.

    To name one of the other classes for each class takes log(C - 1), and a share that n / C samples tell another half
    of log(n / C). That is for all classes, whether they have one or not, so that a few that look alike do not suffice;
    of some thousand classes more than `count` labels can ever gain, as no more than 20,000 are looked at.

    Source: minimum description length, Rissanen, Automatica 14 (1978).
    """
    named = math.log(max(num_classes - 1, 2))
    return num_classes * (named + 0.5 * math.log(max(count / num_classes, 1.0)))
