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


class ClassBalls:
    """Every class as a ball about the mean of its trusted members.

    Args:
        whitened: (N, D) float32, see `whiten`.
        labels: (N,) given labels in [0, C).
        trust: (N,) weight of each sample as a member of its class, in [0, 1].
    """

    def __init__(self, whitened: Tensor, labels: Tensor, trust: Tensor) -> None:
        self.sums, self.mass = class_sums(whitened, labels, trust)
        self.lengths = (self.sums * self.sums).sum(dim=1)
        members = self.mass + _UNSEEN
        self.means, self.offsets = self.sums / members[:, None], self._offset(self.lengths, members)

    def _offset(self, lengths: Tensor, members: Tensor) -> Tensor:
        """Half the squared length of means, by that of the sums and their members."""
        # The mean of few members is off by about D / members, squared, and then looks farther away than it is.
        return (lengths / members**2 - self.sums.shape[1] / members).clamp(min=0) / 2

    def density(self, rows: Tensor, given: Tensor, own: Tensor, classes: Tensor | None = None) -> Tensor:
        """Log-density of rows under classes, up to a constant of each row; of the given class without the row itself.

        Args:
            rows: (n, D) whitened.
            given: (n,) the given classes, in whose sums the rows are,
            own: (n,) with this weight.
            classes: (n, M) classes wanted, the given one first; None: all.

        Returns:
            (n, M), or (n, C). O(n M D) or O(n C D) time.
        """
        column = given[:, None]
        if classes is None:
            density = torch.addmm(-self.offsets, rows, self.means.T)
        else:
            density = torch.bmm(self.means[classes], rows[:, :, None]).squeeze(2) - self.offsets[classes]
            column = torch.zeros_like(column)
        length, dots = (rows * rows).sum(dim=1), (rows * self.sums[given]).sum(dim=1)
        members = (self.mass[given] - own).clamp(min=0) + _UNSEEN
        offset = self._offset(self.lengths[given] + own * (own * length - 2 * dots), members)
        alone = (dots - own * length) / members - offset
        return density.scatter_(1, column, alone[:, None])


def within_classes(embeddings: Tensor, labels: Tensor, trust: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of embeddings, and how they are spread about the means of their classes.

    Args:
        embeddings: (N, D) float32.
        labels: (N,) given labels.
        trust: (N,) weight of each sample, in [0, 1].

    Returns:
        Mean (D,) float32 of all, and covariance (D, D) float64 within classes, shrunk towards a ball. O(N D^2) time.
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
    return mean, (1 - shrinkage) * covariance + shrinkage * ball


def matrix_power(covariance: Tensor, exponent: float) -> Tensor:
    """A covariance (D, D) to a power, float32: -1/2 whitens what has it."""
    variances, directions = torch.linalg.eigh(covariance)
    raised: Tensor = (directions * variances.clamp(min=1e-9) ** exponent) @ directions.T
    return raised.float()


def leading(embeddings: Tensor, most: int) -> Tensor:
    """Embeddings (N, D) by their `most` directions of the largest variance, (N, most); as they are if D is no more.

    O(N D^2) time. Source: principal component analysis.
    """
    if embeddings.shape[1] <= most:
        return embeddings
    mean, variances = embeddings.mean(dim=0), embeddings.new_zeros(embeddings.shape[1], embeddings.shape[1])
    for rows in torch.split(embeddings, _CHUNK):
        variances += (rows - mean).T @ (rows - mean)
    directions = torch.linalg.eigh(variances.double())[1][:, -most:].float()
    return torch.cat([(rows - mean) @ directions for rows in torch.split(embeddings, _CHUNK)])


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
    mean, covariance = within_classes(embeddings, labels, trust)
    scaling = matrix_power(covariance, -0.5)
    whitened = torch.empty_like(embeddings)
    for rows in torch.split(torch.arange(len(labels), device=labels.device), _CHUNK):
        whitened[rows] = (embeddings[rows] - mean) @ scaling
    return whitened
