"""Coordinates in which every class is about equally wide in all directions."""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 65_536  # samples summed up at a time: bounds the memory to _CHUNK x D
_SHRINKAGE = 0.1  # of the covariance towards a ball, for many samples; more for few
_UNSEEN = 0.5  # members at the origin that a mean is taken with: without trusted members it is near nobody


def class_sums(embeddings: Tensor, labels: Tensor, trust: Tensor) -> tuple[Tensor, Tensor]:
    """Sum (C, D) of each class's embeddings (N, D), and its mass (C,), by trust (N,)."""
    num_classes = int(labels.max()) + 1
    sums = embeddings.new_zeros(num_classes, embeddings.shape[1])
    for rows in torch.split(torch.arange(len(labels), device=labels.device), _CHUNK):
        sums.index_add_(0, labels[rows], embeddings[rows] * trust[rows, None])
    return sums, trust.new_zeros(num_classes).index_add_(0, labels, trust)


def ball_density(
    dots: Tensor, squares: Tensor, mass: Tensor, given: Tensor, own: Tensor, rows: Tensor
) -> Tensor:
    """Log-density of whitened rows under each class as a ball about its mean, up to a constant; leave-one-out.

    Args:
        dots: (n, M) products of the rows with the sums of M classes each.
        squares: (n, M) squared lengths of those sums.
        mass: (n, M) mass of those classes.
        given: (n,) which of the M is the given class, in whose sum the row itself is,
        own: (n,) with this weight.
        rows: (n, D) whitened embeddings.

    Returns:
        (n, M).
    """
    column, own = given[:, None], own[:, None]
    length = (rows * rows).sum(dim=1, keepdim=True)
    squares = squares.scatter_add(1, column, own * (own * length - 2 * dots.gather(1, column)))
    dots = dots.scatter_add(1, column, -own * length)
    members = mass.scatter_add(1, column, -own).clamp(min=0) + _UNSEEN
    # The mean of few members is off by about D / members, squared, and then looks farther away than it is.
    square = (squares / members**2 - rows.shape[1] / members).clamp(min=0)
    return dots / members - square / 2


def whiten(embeddings: Tensor, labels: Tensor, trust: Tensor) -> Tensor:
    """Embeddings without their mean, scaled so that the spread within classes is 1 in every direction.

    The logarithm of the ratio of two classes' densities is then x.(m - n) - (|m|^2 - |n|^2) / 2 for centres m, n.

    Args:
        embeddings: (N, D) float32.
        labels: (N,) given labels.
        trust: (N,) weight of each sample in the covariance, in [0, 1].

    Returns:
        (N, D) float32. O(N D^2) time.

    Source: linear discriminant analysis (Fisher 1936; Rao 1948), with a shrunk covariance.
    """
    count, dim = embeddings.shape
    sums, mass = class_sums(embeddings, labels, trust)
    centres = sums / mass.clamp(min=1e-6)[:, None]
    mean = sums.sum(dim=0) / mass.sum().clamp(min=1e-6)
    scatter = embeddings.new_zeros(dim, dim, dtype=torch.float64)
    for rows in torch.split(torch.arange(count, device=labels.device), _CHUNK):
        residuals = embeddings[rows] - centres[labels[rows]]
        scatter += ((residuals * trust[rows, None]).T @ residuals).double()
    covariance = scatter / mass.sum().clamp(min=1e-6)
    ball = covariance.diagonal().mean().clamp(min=1e-6) * torch.eye(dim, device=scatter.device)
    shrinkage = _SHRINKAGE + (1 - _SHRINKAGE) * dim / (dim + count)
    variances, directions = torch.linalg.eigh((1 - shrinkage) * covariance + shrinkage * ball)
    scaling = ((directions * variances.clamp(min=1e-9) ** -0.5) @ directions.T).float()
    whitened = torch.empty_like(embeddings)
    for rows in torch.split(torch.arange(count, device=labels.device), _CHUNK):
        whitened[rows] = (embeddings[rows] - mean) @ scaling
    return whitened
