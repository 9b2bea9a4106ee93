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
    sums = embeddings.new_zeros(len(embeddings), bank.num_classes)
    for start in range(0, len(bank.labels), _CHUNK):
        labels = bank.labels[start : start + _CHUNK]
        cosines = embeddings @ bank.embeddings[start : start + _CHUNK].T  # (B, chunk)
        sums.index_add_(1, labels.clamp(min=0), cosines * (labels >= 0))
    return bank.sum_over_shares(sums) / bank.class_counts.clamp(min=1)


def vmf_similarity(
    sums: Tensor, counts: Tensor, embeddings: Tensor, pooled: Tensor, *, paired: bool = False
) -> Tensor:
    """Log-density of embeddings under one von Mises-Fisher distribution for each class.

    Args:
        sums: (C, D) sums of each class's unit vectors; or (B, D), one class for each sample, if `paired`.
        counts: (C,) or (B,) number of vectors in each sum.
        embeddings: (B, D) unit vectors.
        pooled: scalar, squared mean resultant length typical of the bank's classes (`pooled_resultant`).
        paired: score sample i under class i only.

    Returns:
        (B, C), or (B,) if `paired`.

    Source: Liu et al., arXiv 2108.01431 (vMF-Sim); kappa: Banerjee et al., JMLR 2005, eq. 4.4.
    """
    dim = embeddings.shape[1]
    norms = sums.norm(dim=1)
    means = (sums / norms.clamp(min=1e-12)[:, None]).to(embeddings)
    kappa = concentration(squared_resultant(norms, counts, pooled), dim)
    cosines = (embeddings * means).sum(dim=1) if paired else embeddings @ means.T
    density: Tensor = cosines * kappa.to(cosines) + log_normaliser(kappa, dim).to(cosines)
    return density


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
    correction = 1 + (
        (3 * t - 5 * t**3) / 24 / v
        + (81 * t**2 - 462 * t**4 + 385 * t**6) / 1152 / v**2
        + (30375 * t**3 - 369603 * t**5 + 765765 * t**7 - 425425 * t**9) / 414720 / v**3
    )
    log_bessel_less_power = (
        v * (root - torch.log1p(root) - math.log(v))
        - 0.5 * math.log(2 * math.pi * v)
        - 0.5 * torch.log(root)
        + torch.log(correction)
    )
    return -(dim / 2) * math.log(2 * math.pi) - log_bessel_less_power
