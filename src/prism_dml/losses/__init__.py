"""Losses: contrastive over batch and memory bank, and adapters to pytorch-metric-learning."""

from prism_dml.losses.contrastive import ContrastiveLoss, MemoryContrastiveLoss
from prism_dml.losses.soft_triple import SoftTripleLoss

__all__ = ["ContrastiveLoss", "MemoryContrastiveLoss", "SoftTripleLoss"]
