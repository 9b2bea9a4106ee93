"""Coordinates in which every class is about equally wide in all directions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK = 65_536  # samples summed up at a time: bounds the memory to _CHUNK x D
_CACHED = 1024  # on a CPU, whose cache these stay in: up to ten times as fast
_SHRINKAGE = 0.1  # of the covariance towards a ball, for many samples; more for few
_MANY = 32  # samples for each direction, of which one has a say of that part, on average, in its own
_LEAST_LEFT = 1e-3  # of the spread in one direction, without a sample: below, it is rounding
_UNSEEN = 0.5  # members at the origin that a mean is taken with: without trusted members it is near nobody


def class_sums(embeddings: Tensor, labels: Tensor, trust: Tensor) -> tuple[Tensor, Tensor]:
    """Sum (C, D) of each class's embeddings (N, D), and its mass (C,), by trust (N,)."""
    num_classes = int(labels.max()) + 1
    sums = embeddings.new_zeros(num_classes, embeddings.shape[1])
    size = _CACHED if embeddings.device.type == "cpu" else _CHUNK
    for own, rows, weights in zip(*(torch.split(x, size) for x in (labels, embeddings, trust)), strict=True):
        sums.index_add_(0, own, rows * weights[:, None])
    return sums, trust.new_zeros(num_classes).index_add_(0, labels, trust)


@dataclass(frozen=True)
class Whitened:
    """Embeddings of a data set, in coordinates in which its classes are about equally wide in all directions.

    Attributes:
        rows: (N, D) float32, without their mean.
        centres: (C, D) of the classes, about which their spread was taken.
        own: (N,) at least 0: without sample i and its copies, at u from their centre, distances would be those by
            I + own_i u u^T. None: of so many samples none counts.
    """

    rows: Tensor
    centres: Tensor
    own: Tensor | None


class ClassBalls:
    """Every class as a ball about the mean of its trusted members.

    Args:
        whitened: N samples, see `whiten`.
        labels: (N,) given labels in [0, C).
        trust: (N,) weight of each sample as a member of its class, in [0, 1].
    """

    def __init__(self, whitened: Whitened, labels: Tensor, trust: Tensor) -> None:
        self.whitened, self.labels, self.trust = whitened, labels, trust
        self.sums, self.mass = class_sums(whitened.rows, labels, trust)
        members = self.mass + _UNSEEN
        self.means = self.sums / members[:, None]
        self.offsets = _offset(self.sums, members)

    def density(self, samples: Tensor, classes: Tensor | None = None) -> Tensor:
        """Log-density of samples under classes, up to a constant of each; a sample has no say on itself.

        It is left out of the mean of its given class, and, where samples are few for a direction, of the spread that
        all were whitened by. There it would stretch just the direction in which it is off, and so come nearer to the
        class that it was given: of 120 samples in 60 directions, half of the way.

        Args:
            samples: (n,) their numbers.
            classes: (n, M) classes wanted, the given one first; None: all.

        Returns:
            (n, M), or (n, C). O(n M D) or O(n C D) time.
        """
        rows, given = self.whitened.rows[samples], self.labels[samples]
        sums, members = self.sums[given], self.mass[given]  # of the given class, without the sample itself
        sums = sums - self.trust[samples, None] * rows
        members = (members - self.trust[samples]).clamp(min=0) + _UNSEEN
        alone = sums / members[:, None]
        dot = (rows * alone).sum(dim=1, keepdim=True)
        if classes is None:
            column, offsets = given[:, None], self.offsets
            density = torch.addmm(-offsets, rows, self.means.T)
        else:
            column, offsets = torch.zeros_like(given)[:, None], self.offsets[classes]
            density = torch.bmm(self.means[classes], rows[:, :, None]).squeeze(2) - offsets
        density.scatter_(1, column, dot - _offset(sums, members)[:, None])
        if self.whitened.own is None:
            return density
        centre = self.whitened.centres[given]
        if classes is None:
            present, place = torch.unique(given, return_inverse=True)
            from_centre = (self.whitened.centres[present] @ self.means.T)[place]
        else:
            from_centre = torch.bmm(self.means[classes], centre[:, :, None]).squeeze(2)
        from_centre.scatter_(1, column, (centre * alone).sum(dim=1, keepdim=True))
        dots = (density + offsets).scatter_(1, column, dot)
        # (u.(x - m))^2, less what is the same for all classes, |u|^4
        off = rows - centre
        towards = (off * centre).sum(dim=1, keepdim=True) - dots + from_centre  # u.(c - m)
        length = (off * off).sum(dim=1, keepdim=True)
        return density - self.whitened.own[samples, None] / 2 * towards * (2 * length + towards)


def _offset(sums: Tensor, members: Tensor) -> Tensor:
    """Half the squared length of means, by sums (n, D) of so many members (n,)."""
    # The mean of few members is off by about D / members, squared, and then looks farther away than it is.
    lengths = (sums * sums).sum(dim=1)
    return (lengths / members**2 - sums.shape[1] / members).clamp(min=0) / 2


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
    shrinkage = _shrinkage(count, dim)
    return mean, (1 - shrinkage) * covariance + shrinkage * ball


def _shrinkage(count: int, dim: int) -> float:
    """Share in (0, 1) of a ball in the covariance of so many samples."""
    return _SHRINKAGE + (1 - _SHRINKAGE) * dim / (dim + count)


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


def whiten(embeddings: Tensor, labels: Tensor, trust: Tensor, first: Tensor) -> Whitened:
    """Embeddings without their mean, scaled so that the spread within classes is 1 in every direction.

    The logarithm of the ratio of two classes' densities is then x.(m - n) - (|m|^2 - |n|^2) / 2 for centres m, n.

    Args:
        embeddings: (N, D) float32.
        labels: (N,) given labels.
        trust: (N,) weight of each sample in the covariance, in [0, 1].
        first: (N,) number of the first of its copies that have its label; its own if there are none.

    Returns:
        N samples. O(N D^2) time.

    Source: linear discriminant analysis (Fisher 1936; Rao 1948), with a shrunk covariance; without a sample: Sherman
    and Morrison, Ann. Math. Stat. 21 (1950).
    """
    mean, covariance = within_classes(embeddings, labels, trust)
    scaling = matrix_power(covariance, -0.5)
    whitened = torch.empty_like(embeddings)
    parts = torch.split(torch.arange(len(labels), device=labels.device), _CHUNK)
    for rows in parts:
        whitened[rows] = (embeddings[rows] - mean) @ scaling
    sums, mass = class_sums(whitened, labels, trust)
    centres = sums / mass.clamp(min=1e-6)[:, None]
    if len(labels) > _MANY * embeddings.shape[1]:
        return Whitened(whitened, centres, None)
    lengths = torch.cat([(whitened[rows] - centres[labels[rows]]).square().sum(dim=1) for rows in parts])
    # A sample that leaves takes the centre with it, and its copies. The last of a class adds nothing: it is the centre.
    members, leaving = mass[labels], torch.zeros_like(trust).index_add_(0, first, trust)[first]
    leaving = torch.where(members - leaving > 1e-6, leaving * members / (members - leaving), 0.0)
    share = (1 - _shrinkage(*embeddings.shape)) * leaving / mass.sum().clamp(min=1e-6)
    return Whitened(whitened, centres, share / (1 - share * lengths).clamp(min=_LEAST_LEFT))
