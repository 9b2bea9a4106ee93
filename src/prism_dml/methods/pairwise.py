"""Contrastive loss on the pairs of a batch, all labels believed."""

import torch
from torch import Tensor

from prism_dml.losses.contrastive import ContrastiveLoss
from prism_dml.methods.base import Method, StepResult, TrainingSet
from prism_dml.methods.config import MethodConfig
from prism_dml.models.embedder import Embedder


class Contrastive(Method):
    """Contrastive loss on the batch only, margin 0.5 (Hadsell et al., CVPR 2006; cosine form of XBM)."""

    name = "contrastive"
    summary = "contrastive loss on the pairs of a batch"

    def __init__(self, embedder: Embedder, data: TrainingSet, config: MethodConfig) -> None:
        super().__init__(embedder, data, config)
        self.criterion = ContrastiveLoss(config.margin)

    def forward(self, images: Tensor, labels: Tensor, index: Tensor) -> StepResult:
        """Learn from every sample; see `Method.forward`."""
        loss = self.criterion(self.embedder(images), labels)
        return StepResult(loss, torch.ones_like(labels, dtype=torch.bool))
