"""Forward correction: learn how labels go wrong, then learn the labels as they would be."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

from prism_dml.methods.base import EmbedAll, Method, StepResult, TrainingSet
from prism_dml.methods.classifier import Classifier
from prism_dml.methods.config import MethodConfig
from prism_dml.models.embedder import Embedder

ANCHOR_SHARE = 0.3
"""Place of a class's anchor among its samples: the 97th percentile of all, with the ten classes of the source."""


class FCorrection(Method):
    """A classifier trained twice: first to estimate T_ij = p(given j | true i), then on -log (p T)_y.

    The whole budget of steps is spent on each of two networks; the second is evaluated. Embedding: the features before
    the classifier.
    Source: Patrini et al., CVPR 2017 ("forward").
    """

    name = "f-correction"
    summary = "a classifier whose loss is corrected by how labels go wrong, as a first one has found it"
    rounds = 2
    round: Tensor
    transition: Tensor

    def __init__(self, embedder: Embedder, data: TrainingSet, config: MethodConfig) -> None:
        super().__init__(embedder, data, config)
        self.peer = embedder.sibling()
        weights = [Classifier.draw(data.num_classes, self.embedding_dim, seed) for seed in (0, 1)]
        self.class_weights = nn.ParameterList(weights)
        self.register_buffer("round", torch.zeros((), dtype=torch.long))
        self._number = 0  # the same, without asking the device in each step
        self.register_buffer("transition", torch.eye(data.num_classes))  # (C, C)

    @torch.no_grad()
    def on_round_start(self, number: int, embed_all: EmbedAll) -> None:
        """Before the second round, estimate the transitions by the network of the first."""
        if number == 1:
            posterior = embed_all(self._classifier()).softmax(dim=1)
            counts = self.data.labels.bincount(minlength=self.data.num_classes)
            self.transition.copy_(estimate_transition(posterior, counts.to(posterior.device)))
        self.round.fill_(number)
        self._number = number

    def networks(self) -> dict[str, Embedder]:
        """Both networks; the second is evaluated."""
        return {"model": self.embedder, "peer": self.peer}

    def forward(self, images: Tensor, labels: Tensor, index: Tensor) -> StepResult:
        """Learn from every sample, with the network of this round; see `Method.forward`."""
        logits = self._classifier()(images)  # (B, C)
        loss = (
            forward_corrected(logits, labels, self.transition)
            if self._number
            else cross_entropy(logits, labels)
        )
        return StepResult(loss, torch.ones_like(labels, dtype=torch.bool))

    def _classifier(self) -> Classifier:
        """The classifier of this round."""
        return Classifier(self.embedder if self._number else self.peer, self.class_weights[self._number])

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._number = int(self.round)


def estimate_transition(posterior: Tensor, counts: Tensor) -> Tensor:
    """T (C, C), T_ij = p(given j | true i): the posterior at an anchor of class i, a sample that is surely of it.

    The anchor is not the most probable sample, which may be an outlier, but comes `ANCHOR_SHARE` of the class's size
    after it. With ten equal classes that is the 97th percentile of all samples, as published; with more classes that
    percentile would lie beyond the class's own samples.

    Args:
        posterior: (N, C) probability of each given label for each sample.
        counts: (C,) number of samples with each label.

    Source: Patrini et al., CVPR 2017, and its released code.
    """
    place = (ANCHOR_SHARE * counts).long().clamp(max=len(posterior) - 1)  # (C,)
    first = posterior.topk(int(place.max()) + 1, dim=0).indices  # (places, C), samples in order
    anchors = first.gather(0, place[None]).squeeze(0)  # (C,)
    return posterior[anchors]


def forward_corrected(logits: Tensor, labels: Tensor, transition: Tensor) -> Tensor:
    """Mean () of -log sum_i p_i T_iy, in logarithms.

    Args:
        logits: (B, C) of the true class.
        labels: (B,) given labels y.
        transition: (C, C) T. Of it B columns are looked at: O(B.C), not O(C^2).
    """
    reached = (
        transition[:, labels].T.clamp(min=1e-8).log()
    )  # (B, C), log T_iy: never -inf, whose gradient is NaN
    return -(log_softmax(logits, dim=1) + reached).logsumexp(dim=1).mean()
