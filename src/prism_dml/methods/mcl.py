"""Memory contrastive learning, without and with PRISM, and its oracle."""

import torch
from torch import Tensor

from prism_dml.losses.contrastive import MemoryContrastiveLoss
from prism_dml.methods.base import Method, StepResult, TrainingSet
from prism_dml.methods.config import MethodConfig
from prism_dml.methods.selector import BANK, SELECTOR, make_bank, make_selector
from prism_dml.models.embedder import Embedder
from prism_dml.selection import Selection


class MCL(Method):
    """Contrastive loss on the batch and on a memory of past embeddings, all labels believed.

    Source: XBM (Wang et al., CVPR 2020); margin 0.5, weight 1.
    """

    name = "mcl"
    summary = "memory contrastive loss (XBM), all labels believed"
    reads = BANK | {"margin", "bank_weight"}

    def __init__(self, embedder: Embedder, data: TrainingSet, config: MethodConfig) -> None:
        super().__init__(embedder, data, config)
        self.criterion = MemoryContrastiveLoss(config.margin, config.bank_weight)
        self._learned: tuple[Tensor, Tensor, Tensor] | None = None
        self._remember(data, config)

    def _remember(self, data: TrainingSet, config: MethodConfig) -> None:
        self.bank = make_bank(data, self.embedding_dim, config)

    def _trusted(self, embeddings: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        """(B,) bool, the samples to learn from."""
        return torch.ones_like(labels, dtype=torch.bool)

    def forward(self, images: Tensor, labels: Tensor, index: Tensor) -> StepResult:
        """Learn from the trusted samples against each other and the memory; see `Method.forward`."""
        embeddings = self.embedder(images)  # (B, D)
        kept = self._trusted(embeddings.detach(), labels, index)
        return StepResult(self._learn(embeddings[kept], labels[kept], index[kept]), kept)

    def _learn(self, embeddings: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        """Loss () of the trusted samples against each other and the memory, which they enter after the update."""
        self._learned = (embeddings.detach(), labels, index)
        bank = self.bank
        loss: Tensor = self.criterion(
            embeddings, labels, bank.embeddings, bank.labels, index, bank.index, bank.sum_over_shares
        )
        return loss

    def on_update(self) -> None:
        """Enqueue the samples that were learned from."""
        assert self._learned is not None, "on_update comes after a step"
        self.bank.enqueue(*self._learned)
        self._learned = None


class PrismMCL(MCL):
    """Memory contrastive loss on the samples that PRISM trusts; the memory that judges is the one learned from.

    Source: PRISM (Liu et al., CVPR 2021), sec. 3.
    """

    name = "prism-mcl"
    summary = "memory contrastive loss on the samples that PRISM trusts"
    reads = MCL.reads | SELECTOR
    selects = True

    @classmethod
    def check(cls, config: MethodConfig) -> None:
        """ValueError with a similarity to proxies."""
        if config.similarity == "proxy":
            raise ValueError(f'similarity "proxy" needs a loss with proxies, which "{cls.name}" has not')

    def _remember(self, data: TrainingSet, config: MethodConfig) -> None:
        self.selector = make_selector(data, self.embedding_dim, config)
        self.bank = self.selector.bank

    def _trusted(self, embeddings: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        return self.selector(embeddings, labels, index).keep  # type: ignore[no-any-return]

    def judge(self, embeddings: Tensor, labels: Tensor, index: Tensor) -> tuple[Selection, float]:
        """Judge the whole training set against the memory; see `Method.judge`."""
        return self.selector.judge(embeddings, labels, index)

    @property
    def noise_rate_estimate(self) -> float:
        """PRISM's rate: as given, or estimated."""
        return self.selector.noise_rate_estimate


class Oracle(MCL):
    """Memory contrastive loss on the truly clean samples only: the line that everything is measured against."""

    name = "oracle"
    summary = "memory contrastive loss on the truly clean samples (needs the true labels)"
    clean_only = True
