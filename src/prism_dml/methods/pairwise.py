"""Losses on the pairs of a batch, all labels believed."""

import torch
from pytorch_metric_learning.losses import CircleLoss, FastAPLoss, MultiSimilarityLoss, SupConLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner
from torch import Tensor, nn

from prism_dml.losses.contrastive import ContrastiveLoss
from prism_dml.losses.library import LibraryLoss
from prism_dml.methods.base import Method, StepResult, TrainingSet
from prism_dml.methods.config import MethodConfig
from prism_dml.models.embedder import Embedder


class Believing(Method):
    """Any loss on the embeddings and the given labels of a batch, all of them believed."""

    def __init__(self, embedder: Embedder, data: TrainingSet, config: MethodConfig) -> None:
        super().__init__(embedder, data, config)
        self.criterion = self._criterion(data, config)

    def _criterion(self, data: TrainingSet, config: MethodConfig) -> nn.Module:
        """The loss: embeddings (B, D), labels (B,) -> ()."""
        raise AssertionError(f"{type(self).__name__} has no loss")

    def forward(self, images: Tensor, labels: Tensor, index: Tensor) -> StepResult:
        """Learn from every sample; see `Method.forward`."""
        loss = self.criterion(self.embedder(images), labels)
        return StepResult(loss, torch.ones_like(labels, dtype=torch.bool))


class Contrastive(Believing):
    """Contrastive loss on the batch only, margin 0.5 (Hadsell et al., CVPR 2006; cosine form of XBM)."""

    name = "contrastive"
    summary = "contrastive loss on the pairs of a batch, all labels believed"
    reads = frozenset({"margin"})

    def _criterion(self, data: TrainingSet, config: MethodConfig) -> nn.Module:
        return ContrastiveLoss(config.margin)


class FastAP(Believing):
    """Average precision, made differentiable by histograms of 10 bins (Cakir et al., CVPR 2019)."""

    name = "fast-ap"
    summary = "FastAP: average precision by histograms, all labels believed"

    def _criterion(self, data: TrainingSet, config: MethodConfig) -> nn.Module:
        return LibraryLoss(FastAPLoss, num_bins=10)


class MultiSimilarity(Believing):
    """Multi-similarity loss with its miner (Wang et al., CVPR 2019): alpha 2, beta 40, base 0.5, epsilon 0.1."""

    name = "ms"
    summary = "multi-similarity loss with its miner, all labels believed"

    def _criterion(self, data: TrainingSet, config: MethodConfig) -> nn.Module:
        return LibraryLoss(MultiSimilarityLoss, MultiSimilarityMiner(epsilon=0.1), alpha=2, beta=40, base=0.5)


class Circle(Believing):
    """Circle loss on pairs (Sun et al., CVPR 2020): m 0.4, gamma 80."""

    name = "circle"
    summary = "circle loss, all labels believed"

    def _criterion(self, data: TrainingSet, config: MethodConfig) -> nn.Module:
        return LibraryLoss(CircleLoss, m=0.4, gamma=80)


class SupCon(Believing):
    """Supervised contrastive loss, one view of each image (Khosla et al., NeurIPS 2020): temperature 0.1."""

    name = "supcon"
    summary = "supervised contrastive loss, all labels believed"

    def _criterion(self, data: TrainingSet, config: MethodConfig) -> nn.Module:
        return LibraryLoss(SupConLoss, temperature=0.1)
