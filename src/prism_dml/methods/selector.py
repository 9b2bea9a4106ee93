"""The memory and the selector of a method's settings."""

import torch.distributed as dist

from prism_dml.methods.base import TrainingSet
from prism_dml.methods.config import MethodConfig
from prism_dml.selection import PRISM, MemoryBank, ShardedBank

BANK = frozenset({"bank_size", "shard_bank"})
SELECTOR = BANK | {"noise_rate", "similarity", "threshold", "window", "selection_warmup", "temperature"}
"""Settings that are read here."""


def make_bank(data: TrainingSet, embedding_dim: int, config: MethodConfig) -> MemoryBank:
    """Memory as the settings want it, as large as the training set if they do not say; arguments as below."""
    size = config.bank_size or data.num_samples
    if config.shard_bank and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return ShardedBank(data.num_classes, embedding_dim, size)
    return MemoryBank(data.num_classes, embedding_dim, size)


def make_selector(data: TrainingSet, embedding_dim: int, config: MethodConfig) -> PRISM:
    """PRISM as the settings want it.

    Args:
        data: given labels of the training set.
        embedding_dim: number of an embedding's components.
        config: the method's settings.
    """
    return PRISM(
        data.num_classes,
        embedding_dim,
        noise_rate=config.noise_rate,
        similarity=config.similarity,
        window=config.window,
        threshold=config.threshold,
        warmup=config.selection_warmup,
        temperature=config.temperature,
        bank=make_bank(data, embedding_dim, config),
    )
