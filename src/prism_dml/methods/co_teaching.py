"""Co-teaching: two networks choose each other's samples."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prism_dml.methods.base import EmbedAll, Method, StepResult, TrainingSet
from prism_dml.methods.classifier import Classifier, CosineClassifier
from prism_dml.methods.config import MethodConfig
from prism_dml.models.embedder import Embedder
from prism_dml.selection import TopR


class CoTeaching(Method):
    """Two classifiers; each learns from the samples of a batch on which the other has the smallest loss.

    The share r_t that is left out rises linearly, epoch by epoch, from 0 in the first one to the noise rate after
    `rise_epochs`; in a run that is shorter than twice those by as many equal parts of its first half. Loss:
    cross-entropy; embedding: the features before the classifier. `embedder` is evaluated, and its samples are `kept`.
    Source: Han et al., NeurIPS 2018.
    """

    name = "co-teaching"
    summary = (
        "two classifiers, each learns from the samples of smallest loss for the other (needs the noise rate)"
    )
    reads = frozenset({"noise_rate", "rise_epochs"})
    classifier: ClassVar[type[Classifier]] = Classifier
    epochs: Tensor

    @classmethod
    def check(cls, config: MethodConfig) -> None:
        """ValueError without a noise rate."""
        if config.noise_rate == "auto":
            raise ValueError(f'method "{cls.name}" cannot estimate the noise rate: give it, --noise-rate 0.3')

    def __init__(self, embedder: Embedder, data: TrainingSet, config: MethodConfig) -> None:
        super().__init__(embedder, data, config)
        self.noise_rate, self.rise_epochs = float(config.noise_rate), float(config.rise_epochs)
        self.peer = embedder.sibling()
        weights = [self.classifier.draw(data.num_classes, self.embedding_dim, seed) for seed in (0, 1)]
        self.class_weights = nn.ParameterList(weights)
        self.rule = TopR()
        self.register_buffer("epochs", torch.zeros((), dtype=torch.long))  # begun so far

    def look_every(self, epoch: int, steps: int) -> int:
        """An epoch, or the parts by which the share rises in a short run: by epochs it would do so late, or never."""
        part = max(1, min(epoch, int(steps / self.rise_epochs / 2)))
        self.rise_epochs = max(1.0, min(self.rise_epochs, steps / part / 2))
        return part

    def on_epoch_start(self, embed_all: EmbedAll) -> None:
        """Count the epochs, or parts of the run."""
        self.epochs += 1

    def networks(self) -> dict[str, Embedder]:
        """Both networks; the first is evaluated."""
        return {"model": self.embedder, "peer": self.peer}

    def forward(self, images: Tensor, labels: Tensor, index: Tensor) -> StepResult:
        """Let each network learn from the other's choice; see `Method.forward`."""
        networks = zip((self.embedder, self.peer), self.class_weights, strict=True)
        logits = [self.classifier(*network)(images) for network in networks]  # (B, C)
        losses = [cross_entropy(each, labels, reduction="none") for each in logits]  # (B,)
        candidates = self._candidates(*(each.argmax(dim=1) for each in logits))
        rise = ((self.epochs - 1) / self.rise_epochs).clamp(0.0, 1.0)
        choices = [self._smallest(each.detach(), candidates, self.noise_rate * rise) for each in losses]
        loss = _mean(losses[0], choices[1]) + _mean(losses[1], choices[0])
        return StepResult(loss, choices[1])

    def _candidates(self, prediction: Tensor, peer_prediction: Tensor) -> Tensor:
        """(B,) bool, the samples among which each network chooses, from the two predicted labels (B,)."""
        return torch.ones_like(prediction, dtype=torch.bool)

    def _smallest(self, losses: Tensor, candidates: Tensor, share: Tensor) -> Tensor:
        """(B,) bool, the candidates without the given share of them that has the largest losses (B,)."""
        rejected: Tensor = self.rule(-losses, candidates, share)[0]
        return candidates & ~rejected


class CoTeachingPlus(CoTeaching):
    """Co-teaching among the samples of a batch that the two predict differently; among all, if there are none.

    While the share that is left out rises it is plain co-teaching, as the networks need a start.
    Source: Yu et al., ICML 2019.
    """

    name = "co-teaching-plus"
    summary = "co-teaching among the samples that the two predict differently (needs the noise rate)"

    def _candidates(self, prediction: Tensor, peer_prediction: Tensor) -> Tensor:
        differ = prediction != peer_prediction
        return differ | ~differ.any() | (self.epochs <= self.rise_epochs)


class CoTeachingTemperature(CoTeaching):
    """Co-teaching on the normalised softmax, temperature 0.05.

    Source: Han et al., NeurIPS 2018; temperature: a baseline of PRISM (Liu et al., CVPR 2021).
    """

    name = "co-teaching-t"
    summary = "co-teaching on the normalised softmax (needs the noise rate)"
    classifier = CosineClassifier

    def proxies(self) -> list[nn.Parameter]:
        """The class weights of both."""
        return list(self.class_weights)


def _mean(losses: Tensor, chosen: Tensor) -> Tensor:
    """Mean () of the chosen ones of (B,) losses."""
    return (losses * chosen).sum() / chosen.sum().clamp(min=1)
