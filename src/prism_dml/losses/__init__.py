"""Losses: contrastive over batch and memory bank, instance, prototypes, and adapters to pytorch-metric-learning."""

from prism_dml.losses.contrastive import ContrastiveLoss, MemoryContrastiveLoss
from prism_dml.losses.instance import InstanceLoss
from prism_dml.losses.library import LibraryLoss
from prism_dml.losses.prototypes import PrototypeLoss
from prism_dml.losses.soft_triple import SoftTripleLoss

__all__ = [
    "ContrastiveLoss",
    "InstanceLoss",
    "LibraryLoss",
    "MemoryContrastiveLoss",
    "PrototypeLoss",
    "SoftTripleLoss",
]
