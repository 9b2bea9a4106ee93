"""The selector of a method's settings."""

from prism_dml.methods.base import TrainingSet
from prism_dml.methods.config import MethodConfig
from prism_dml.selection import PRISM


def make_selector(data: TrainingSet, embedding_dim: int, config: MethodConfig) -> PRISM:
    """PRISM as the settings want it, with a memory as large as the training set if they do not say.

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
        bank_size=config.bank_size or data.num_samples,
        window=config.window,
        threshold=config.threshold,
        warmup=config.selection_warmup,
        temperature=config.temperature,
    )
