"""What a network itself makes of the labels that it learned from, beside what its embeddings say of them."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from prism_dml.selection.mistakes import Mistakes

_LOGITS = 1 << 24  # looked at together
_SURE = 1e-7  # so near to 0 and 1 an opinion is cut off


def by_network(
    embeddings: Tensor,
    weights: Tensor,
    temperature: float,
    classes: Tensor,
    mistakes: Mistakes,
) -> Tensor:
    """Probability (N, M) of each listed class by a normalised softmax, some samples at a time; see `given_the_label`.

    Args:
        embeddings: (N, D), of any length.
        weights: (C, D) of the classes.
        temperature: of the softmax.
        classes: (N, M) class numbers, the given one first.
        mistakes: how often each class is given each label.
    """
    directions, rows = normalize(weights.to(embeddings), dim=1), max(1, _LOGITS // len(weights))
    found = []
    for part, listed in zip(torch.split(embeddings, rows), torch.split(classes, rows), strict=True):
        logits = normalize(part, dim=1) @ directions.T / temperature
        found.append(given_the_label(logits, listed, mistakes))
    return torch.cat(found)


def given_the_label(logits: Tensor, classes: Tensor, mistakes: Mistakes) -> Tensor:
    """Probability (n, M) of each listed class by a network, once the label of a sample is seen.

    Args:
        logits: (n, C) of the network.
        classes: (n, M) class numbers, the given one first.
        mistakes: how often each class is given each label.

    Source: Bayes' rule; see forward correction, Patrini et al., CVPR 2017.
    """
    chances = logits.softmax(dim=1)
    seen = mistakes.seen(classes, logits.shape[1])
    return chances.gather(1, classes) * seen / mistakes.label(chances, classes[:, :1])


def pool(first: Tensor, second: Tensor) -> Tensor:
    """Probability (n, M) of each listed class by two opinions that count alike.

    The log-odds that the given label is right are the mean of both. If it is wrong, the others are as probable as the
    geometric mean says, and that it is of no listed class is as the first has it: the second does not know.

    Args:
        first: (n, M) probabilities, the given class first; what is missing to 1 is that of no listed class.
        second: (n, M) the same of the second, what is missing is not looked at.

    Source: the logarithmic opinion pool, Genest and Zidek, Statistical Science 1 (1986).
    """
    right = (torch.logit(first[:, :1], _SURE) + torch.logit(second[:, :1], _SURE)) / 2
    pooled = torch.cat([right.sigmoid(), (first[:, 1:] * second[:, 1:].clamp(min=_SURE)).sqrt()], dim=1)
    listed = first[:, 1:].sum(dim=1, keepdim=True) / (1 - first[:, :1]).clamp(min=_SURE)
    left = (1 - pooled[:, :1]) * listed.clamp(max=1)
    pooled[:, 1:] *= left / pooled[:, 1:].sum(dim=1, keepdim=True).clamp(min=1e-30)
    return pooled
