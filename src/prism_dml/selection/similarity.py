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


def vmf_similarity(
    means: Tensor,
    lengths: Tensor,
    counts: Tensor,
    embeddings: Tensor,
    pooled: Tensor,
    *,
    paired: bool = False,
) -> Tensor:
    """Log-density of embeddings under one von Mises-Fisher distribution for each class.

    Args:
        means: (C, D) mean of each class's unit vectors; or (B, D), one class for each sample, if `paired`.
        lengths: (C,) or (B,) length of each class's sum of unit vectors, float64.
        counts: (C,) or (B,) number of vectors in each sum.
        embeddings: (B, D) unit vectors.
        pooled: scalar, squared mean resultant length typical of the bank's classes (`pooled_resultant`).
        paired: score sample i under class i only.

    Returns:
        (B, C), or (B,) if `paired`.

    Source: Liu et al., arXiv 2108.01431 (vMF-Sim); kappa: Banerjee et al., JMLR 2005, eq. 4.4.
    """
    dim = embeddings.shape[1]
    kappa = concentration(squared_resultant(lengths, counts, pooled), dim)
    scale = (kappa * counts / lengths.clamp(min=1e-12)).to(embeddings)  # kappa / length of the mean
    means = means.to(embeddings)
    products = (embeddings * means).sum(dim=1) if paired else embeddings @ means.T
    return torch.addcmul(log_normaliser(kappa, dim).to(embeddings), products, scale)


def squared_resultant(norms: Tensor, counts: Tensor, pooled: Tensor, prior: float = 2.0) -> Tensor:
    """Squared mean resultant length of each class, unbiased and shrunk towards `pooled`; (C,) in [0, 0.9999].

    The mean of n random unit vectors has an expected squared length of 1/n even if they have no common
    direction, and exactly 1 for n = 1, where kappa would be infinite. (n Rbar^2 - 1)/(n - 1) removes that;
    `prior` pseudo-observations of the pooled value steady classes of a few members.
    """
    counts = counts.to(norms)
    unbiased = counts * ((norms / counts.clamp(min=1)) ** 2) - 1  # (n - 1) times the estimate
    weight = (counts - 1).clamp(min=0)
    estimate = (unbiased * (counts > 1) + prior * pooled) / (weight + prior)
    return estimate.clamp(0.0, 0.9999)


def pooled_resultant(norms: Tensor, counts: Tensor) -> Tensor:
    """Squared mean resultant length that is typical of all classes, weighted by their members; scalar."""
    counts = counts.to(norms)
    several = counts > 1
    unbiased = counts * ((norms / counts.clamp(min=1)) ** 2) - 1
    return ((unbiased * several).sum() / ((counts - 1) * several).sum().clamp(min=1)).clamp(0.0, 0.9999)


def concentration(squared: Tensor, dim: int) -> Tensor:
    """kappa ~ Rbar (D - Rbar^2) / (1 - Rbar^2). Source: Banerjee et al., JMLR 2005, eq. 4.4."""
    return squared.sqrt() * (dim - squared) / (1 - squared)


def log_normaliser(kappa: Tensor, dim: int) -> Tensor:
    """log C_D(kappa) = v log kappa - (D/2) log 2 pi - log I_v(kappa), v = D/2 - 1; finite for every kappa >= 0.

    Uniform asymptotic expansion of the Bessel function with three correction terms, written so that log kappa
    cancels: exact to 2e-7 from D = 32 on, to 2e-4 at D = 8, to 0.02 at D = 4.

    Raises:
        ValueError: if dim < 4.

    Source: Abramowitz and Stegun, 9.7.7.
    """
    if dim < 4:
        raise ValueError(f"the vMF similarity needs an embedding of at least 4 numbers, not {dim}")
    v = dim / 2 - 1
    kappa = kappa.double()
    root = torch.sqrt(1 + (kappa / v) ** 2)
    t = 1 / root
    u = t * t
    correction = 1 + t / v * (
        (3 - 5 * u) / 24
        + t / v * (81 + u * (385 * u - 462)) / 1152
        + u / v**2 * (30375 + u * (u * (765765 - 425425 * u) - 369603)) / 414720
    )
    log_bessel_less_power = (
        v * (root - torch.log1p(root) - math.log(v))
        - 0.5 * math.log(2 * math.pi * v)
        - 0.5 * torch.log(root)
        + torch.log(correction)
    )
    return -(dim / 2) * math.log(2 * math.pi) - log_bessel_less_power
