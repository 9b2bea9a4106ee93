"""PRISM that learns from the samples it rejects, too, but not from their labels."""

from torch import Tensor

from prism_dml.losses.prototypes import PrototypeLoss
from prism_dml.methods.base import StepResult, TrainingSet
from prism_dml.methods.config import MethodConfig
from prism_dml.methods.mcl import PrismMCL
from prism_dml.models.embedder import Embedder


class PrismPrototypes(PrismMCL):
    """PRISM and MCL; rejected samples lose their label and are learned from by what they resemble in the memory.

    Their loss (see `PrototypeLoss`) has weight 1, as published. They do not enter the memory.
    Source: SGPS (Yu et al., IEEE TIP 33, 2024), with neighbours in the memory in place of subgroups.
    """

    learns_from_rejected = True
    name = "prism-prototypes"
    summary = "prism-mcl that also learns from rejected samples, by prototypes instead of their labels"

    @classmethod
    def check(cls, config: MethodConfig) -> None:
        """ValueError with a memory in shares, or a similarity to proxies."""
        super().check(config)
        if config.shard_bank:
            raise ValueError(f'shard_bank: "{cls.name}" looks for neighbours in the whole memory')

    def __init__(self, embedder: Embedder, data: TrainingSet, config: MethodConfig) -> None:
        super().__init__(embedder, data, config)
        self.attraction = PrototypeLoss()

    def forward(self, images: Tensor, labels: Tensor, index: Tensor) -> StepResult:
        """Learn from the trusted samples by label, from the others by prototypes; see `Method.forward`."""
        embeddings = self.embedder(images)  # (B, D)
        kept = self._trusted(embeddings.detach(), labels, index)
        loss = self._learn(embeddings[kept], labels[kept], index[kept])
        bank = self.bank
        loss = loss + self.attraction(
            embeddings[~kept], index[~kept], bank.embeddings, bank.labels, bank.index, bank.centres
        )
        return StepResult(loss, kept)
