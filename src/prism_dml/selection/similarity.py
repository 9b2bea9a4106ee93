"""How much a sample looks like each class of the bank: the logits T(x, k) of PRISM."""

import math

import torch
from torch import Tensor

from prism_dml.selection.bank import MemoryBank

_CHUNK = 65_536  # bank entries compared at a time: bounds the memory of the exact similarity


def centre_similarity(bank: MemoryBank, embeddings: Tensor) -> Tensor:
    """Cosine to class centres, the mean vectors of each class's entries; (B, D) -> (B, C), O(B.C.D).

    Equal to `exact_similarity` up to rounding, whatever the bank's size. Source: PRISM, eq. 4.
    """
    return embeddings @ bank.centres.T


def exact_similarity(bank: MemoryBank, embeddings: Tensor) -> Tensor:
    """Mean cosine to the entries of each class; (B, D) -> (B, C), O(B.M.D). Source: PRISM, eq. 2."""
    sums = embeddings.new_zeros(bank.num_classes, len(embeddings))
    for start in range(0, len(bank.labels), _CHUNK):
        labels = bank.labels[start : start + _CHUNK]
        cosines = bank.embeddings[start : start + _CHUNK] @ embeddings.T  # (chunk, B): rows add up faster
        sums.index_add_(0, labels.clamp(min=0), cosines)  # an empty slot is a row of zeros
    sums = bank.sum_over_shares(sums)
    return sums.T.contiguous().div_(bank.class_counts.clamp(min=1))


def vmf_parameters(lengths: Tensor, counts: Tensor, num_classes: int, dim: int) -> tuple[Tensor, Tensor]:
    """Offset and slope of the log-density of a von Mises-Fisher distribution for each of n sets of unit vectors.

    The log-density of a unit vector x is offset + slope * (mean of the set . x).

    Args:
        lengths: (n,) length of each set's sum.
        counts: (n,) number of vectors in each set.
        num_classes: how many of the sets, the first ones, are the classes; what is typical of those steadies the small
            sets (`pooled_resultant`).
        dim: number D of components.

    Returns:
        (n,) and (n,), in the precision of the lengths.

    Raises:
        ValueError: if dim < 4.

    Source: Liu et al., arXiv 2108.01431 (vMF-Sim); kappa: Banerjee et al., JMLR 2005, eq. 4.4.
    """
    counts = counts.to(lengths)
    excess = excess_resultant(lengths, counts)
    pooled = pooled_resultant(excess[:num_classes], counts[:num_classes])
    kappa = concentration(squared_resultant(excess, counts, pooled), dim)
    return log_normaliser(kappa, dim), kappa * counts / lengths.clamp(min=1e-12)  # kappa / length of the mean


def excess_resultant(lengths: Tensor, counts: Tensor) -> Tensor:
    """n - 1 times the unbiased squared mean resultant length of n vectors, (C,); 0 of a single one.

    The mean of n random unit vectors has an expected squared length of 1/n even if they have no common direction, and
    exactly 1 for n = 1, where kappa would be infinite. (n Rbar^2 - 1) / (n - 1) is without that.
    """
    return (lengths * lengths / counts.clamp(min=1) - 1) * (counts > 1)


def pooled_resultant(excess: Tensor, counts: Tensor) -> Tensor:
    """Squared mean resultant length that is typical of all classes, weighted by their members; scalar."""
    return (excess.sum() / (counts - 1).clamp(min=0).sum().clamp(min=1)).clamp(0.0, 0.9999)


def squared_resultant(excess: Tensor, counts: Tensor, pooled: Tensor, prior: float = 2.0) -> Tensor:
    """Squared mean resultant length of each class, unbiased and shrunk towards `pooled`; (C,) in [0, 0.9999].

    `prior` pseudo-observations of the pooled value steady classes of a few members.
    """
    return ((excess + prior * pooled) / ((counts - 1).clamp(min=0) + prior)).clamp(0.0, 0.9999)


def concentration(squared: Tensor, dim: int) -> Tensor:
    """kappa ~ Rbar (D - Rbar^2) / (1 - Rbar^2). Source: Banerjee et al., JMLR 2005, eq. 4.4."""
    return squared.sqrt() * (dim - squared) / (1 - squared)


def log_normaliser(kappa: Tensor, dim: int) -> Tensor:
    """log C_D(kappa) = v log kappa - (D/2) log 2 pi - log I_v(kappa), v = D/2 - 1; finite for every kappa >= 0.

    Uniform asymptotic expansion of the Bessel function with three correction terms, written so that log kappa
    cancels: exact to 2e-7 from D = 32 on, to 2e-4 at D = 8, to 0.02 at D = 4; and to the precision of kappa's type.

    Raises:
        ValueError: if dim < 4.

    Source: Abramowitz and Stegun, 9.7.7.
    """
    if dim < 4:
        raise ValueError(f"the vMF similarity needs an embedding of at least 4 numbers, not {dim}")
    v = dim / 2 - 1
    root = torch.sqrt(1 + (kappa / v) ** 2)
    t = 1 / root
    u, w = t * t, t / v
    third = (30375 + u * (u * (765765 - 425425 * u) - 369603)) / 414720
    correction = 1 + w * ((3 - 5 * u) / 24 + w * ((81 + u * (385 * u - 462)) / 1152 + w * third))
    log_bessel_less_power = (
        v * (root - torch.log(1 + root) - math.log(v))  # log1p is slower, and root >= 1
        - 0.5 * math.log(2 * math.pi * v)
        + 0.5 * torch.log(correction * correction * t)  # one logarithm less: they take most of the time
    )
    return -(dim / 2) * math.log(2 * math.pi) - log_bessel_less_power
