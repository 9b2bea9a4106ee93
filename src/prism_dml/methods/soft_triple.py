"""SoftTriple with PRISM."""

import torch
from torch import Tensor

from prism_dml.methods.base import StepResult, TrainingSet
from prism_dml.methods.config import MethodConfig
from prism_dml.methods.proxy import SoftTriple
from prism_dml.methods.selector import SELECTOR, make_selector
from prism_dml.models.embedder import Embedder
from prism_dml.selection import Selection


class PrismSoftTriple(SoftTriple):
    """SoftTriple loss on the samples that PRISM trusts, by its memory or by the proxies themselves.

    Source: PRISM (Liu et al., CVPR 2021), sec. 3; ProxySim: Liu et al., arXiv 2108.01431.
    """

    name = "prism-soft-triple"
    summary = "SoftTriple loss on the samples that PRISM trusts"
    selects = True
    reads = SELECTOR

    def __init__(self, embedder: Embedder, data: TrainingSet, config: MethodConfig) -> None:
        super().__init__(embedder, data, config)
        self.selector = make_selector(data, self.embedding_dim, config)
        self._by_proxy = self.selector.similarity == "proxy"  # that the proxies judge
        self._learned: tuple[Tensor, Tensor, Tensor] | None = None

    def forward(self, images: Tensor, labels: Tensor, index: Tensor) -> StepResult:
        """Learn from the trusted samples; see `Method.forward`."""
        embeddings = self.embedder(images)  # (B, D)
        scored = embeddings.detach()
        similar = self._similarities(scored) if self._by_proxy else None
        kept = self.selector(scored, labels, index, similar).keep
        embeddings, labels, index = embeddings[kept], labels[kept], index[kept]
        self._learned = (embeddings.detach(), labels, index)
        return StepResult(self.criterion(embeddings, labels), kept)

    def on_update(self) -> None:
        """Enqueue the samples that were learned from."""
        assert self._learned is not None, "on_update comes after a step"
        self.selector.enqueue(*self._learned)
        self._learned = None

    def judge(self, embeddings: Tensor, labels: Tensor, index: Tensor) -> tuple[Selection, float]:
        """Judge the whole training set against the memory or the proxies; see `Method.judge`."""
        return self.selector.judge(embeddings, labels, index, self._similarities if self._by_proxy else None)

    @torch.no_grad()
    def _similarities(self, embeddings: Tensor) -> Tensor:
        """(B, C) similarity to each class's proxies."""
        return self.criterion.class_similarities(embeddings)

    @property
    def noise_rate_estimate(self) -> float:
        """PRISM's rate: as given, or estimated."""
        return self.selector.noise_rate_estimate
