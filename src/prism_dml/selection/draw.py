"""Parts of a data set, drawn at random and always alike: data may lie in any order."""

from __future__ import annotations

import torch
from torch import Tensor


def some(count: int, most: int, device: torch.device) -> Tensor:
    """Numbers (n,) of at most so many of all samples, ascending; O(count)."""
    if count <= most:
        return torch.arange(count, device=device)
    return _shuffled(count, seed=1)[:most].sort().values.to(device)


def deal(labels: Tensor, folds: int) -> Tensor:
    """A fold for each sample, (N,): those of a class are spread evenly, in an order without meaning."""
    shuffled = _shuffled(len(labels), seed=0).to(labels.device)
    order = shuffled[labels[shuffled].argsort(stable=True)]  # by class
    place = torch.empty_like(order)
    place[order] = torch.arange(len(labels), device=labels.device)
    return place % folds


def _shuffled(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
