"""Refract: judge the whole training set a few times, and learn a doubtful label by the probability that it is right."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from prism_dml.methods.base import EmbedAll, Method, StepResult, TrainingSet
from prism_dml.methods.classifier import CosineClassifier
from prism_dml.methods.config import MethodConfig
from prism_dml.models.embedder import Embedder
from prism_dml.retrieval import neighbour_graph
from prism_dml.selection import Selection
from prism_dml.selection.cross_fit import judge_labels

PARTS, FIRST = 16, 2
"""The first look comes after a sixteenth of the run, or after two epochs where that is earlier: of few images, wrong
labels are soon known by heart."""

APART = 0.5
"""Epochs from one look to the next, at least: in a run of few epochs looks would cost more than the training."""

BELIEVED = 0.5
"""Probability of being right from which on a label is believed as given."""

NEIGHBOURS, EXACT_UP_TO = 64, 5_000
"""Nearest neighbours that name the classes which a sample may belong to; on a CPU, of more samples nearly the nearest:
they only propose."""

_LEAST_WEIGHT = 1e-6  # of a batch, that a mean over nothing is 0


class Judged(NamedTuple):
    """Of N labels: the probability that each is right, the most probable class, its probability, the share wrong."""

    clean: Tensor
    suggested: Tensor
    probability: Tensor
    rate: float


class WarmClassifier(CosineClassifier):
    """The normalised softmax at the temperature 0.1: 0.05, usual where all labels are believed, was worse here."""

    TEMPERATURE = 0.1


class Refract(Method):
    """Normalised softmax on labels that are judged, and put right as far as is known, as the embedding learns.

    All labels are believed at first. After a sixteenth of the run, or two epochs where that is earlier, and then ever
    more rarely, the whole training set is embedded without augmentation and every label judged by the class means of
    the others that are trusted, leave-one-out and in folds (`judge_labels`): calibrated probabilities, and the share of
    wrong labels, come from the likelihood of the given labels. A label that is more likely right than wrong is
    believed; else the sample is learned under the given label and, if that is another, under the most probable one,
    each weighed by its probability. No noise rate, and no memory of embeddings.

    A step costs O(B.C.D) beside the network. A look costs a forward pass of the N samples, and O(N^1.5.D) time for
    their neighbours, on an accelerator O(N^2.D).
    Source: PRISM (Liu et al., CVPR 2021), sec. 3, for trust by the similarity to class means; normalised softmax: Zhai
    and Wu, BMVC 2019; the rest is ours.
    """

    name = "refract"
    summary = "normalised softmax; labels are judged a few times in a run, and put right as far as is known"
    selects = True
    trusted: Tensor
    targets: Tensor
    weights: Tensor
    rate: Tensor
    parts: Tensor
    looked: Tensor

    @classmethod
    def check(cls, config: MethodConfig) -> None:
        """ValueError with a noise rate."""
        if config.noise_rate != "auto":
            raise ValueError(
                f'method "{cls.name}" estimates the noise rate itself: leave it at auto, or take a method that can be '
                "told, such as prism-mcl"
            )

    def __init__(self, embedder: Embedder, data: TrainingSet, config: MethodConfig) -> None:
        super().__init__(embedder, data, config)
        self.class_weights = WarmClassifier.draw(data.num_classes, self.embedding_dim, seed=0)
        twice, certain = data.labels[:, None].repeat(1, 2), torch.tensor([[1.0, 0.0]])
        self.register_buffer("trusted", torch.ones(data.num_samples, dtype=torch.bool))  # labels as given
        self.register_buffer("targets", twice)  # (N, 2) the given label, the most probable one
        self.register_buffer("weights", certain.repeat(data.num_samples, 1))  # (N, 2) of these
        self.register_buffer("rate", torch.zeros(()))
        self.register_buffer("parts", torch.zeros((), dtype=torch.long))  # finished so far
        self.register_buffer("looked", torch.full((), -PARTS))  # after so many of them the last look was
        self._apart = 1  # parts

    def proxies(self) -> list[nn.Parameter]:
        """The class weights."""
        return [self.class_weights]

    def look_every(self, epoch: int, steps: int) -> int:
        """Steps to the first look; `on_epoch_start` is told here how many of these lie between two looks."""
        part = min(math.ceil(steps / PARTS), FIRST * epoch)
        self._apart = math.ceil(APART * epoch / part)
        return part

    def on_epoch_start(self, embed_all: EmbedAll) -> None:
        """Judge all labels, if it is time to."""
        if _is_look(int(self.parts)) and self.parts - self.looked >= self._apart:
            self.looked.copy_(self.parts)
            embeddings = embed_all(self.embedder)
            labels = self.data.labels.to(embeddings.device)
            self._believe(_judge(embeddings, labels, EXACT_UP_TO), labels)
        self.parts += 1

    def _believe(self, judged: Judged, labels: Tensor) -> None:
        """Decide what the next steps learn from, by a judgement on the given labels (N,)."""
        trusted = judged.clean >= BELIEVED
        other = torch.where(judged.suggested == labels, 0, judged.probability)
        self.trusted.copy_(trusted)
        self.targets.copy_(torch.stack([labels, judged.suggested], dim=1))
        self.weights[:, 0] = torch.where(trusted, 1, judged.clean)
        self.weights[:, 1] = torch.where(trusted, 0, other)
        self.rate.fill_(judged.rate)

    def forward(self, images: Tensor, labels: Tensor, index: Tensor) -> StepResult:
        """Learn from a batch as far as it is believed; `kept` are the labels believed as given."""
        classifier = WarmClassifier(self.embedder, self.class_weights)
        chances = classifier(images).log_softmax(dim=1).gather(1, self.targets[index])  # (B, 2)
        weights = self.weights[index]
        loss = -(weights * chances).sum() / weights.sum().clamp(min=_LEAST_WEIGHT)
        return StepResult(loss, self.trusted[index])

    def judge(self, embeddings: Tensor, labels: Tensor, index: Tensor) -> tuple[Selection, float]:
        """Judge the whole training set as the looks do; see `Method.judge`."""
        judged = _judge(embeddings, labels)
        other = torch.where(judged.suggested == labels, 1 - judged.clean, judged.probability)
        selection = Selection(
            keep=judged.clean >= BELIEVED,
            clean_probability=judged.clean,
            threshold=judged.clean.new_tensor(BELIEVED),
            suggested_label=judged.suggested,
            margin=judged.clean - other,
        )
        return selection, judged.rate

    @property
    def noise_rate_estimate(self) -> float:
        """The share of wrong labels as last judged; 0 before."""
        return float(self.rate)


class RefractOracle(Refract):
    """Refract on the truly clean samples only: the line that it is measured against."""

    name = "refract-oracle"
    summary = "refract on the truly clean samples (needs the true labels)"
    clean_only = True


def _is_look(parts: int) -> bool:
    """Whether all is judged after so many parts: 1, 2, 3, 4, 6, 8, 12, 16, ...; dense early, when most is learned."""
    return parts in (1, 2, 3) or (parts > 3 and parts % 2 == 0 and _is_look(parts // 2))


def _judge(embeddings: Tensor, labels: Tensor, exact_up_to: int | None = None) -> Judged:
    """Judge labels (N,) by embeddings (N, D); what could not be embedded, a row of zeros, is believed."""
    clean, suggested = torch.ones_like(embeddings[:, 0]), labels.clone()
    probability = torch.ones_like(clean)
    found = (embeddings != 0).any(dim=1).nonzero().squeeze(1)
    if len(torch.unique(labels[found])) < 2:  # nothing to choose from
        return Judged(clean, suggested, probability, 0.0)
    rows = embeddings[found]
    near, neighbours = neighbour_graph(rows, min(NEIGHBOURS, len(rows) - 1), exact_up_to)
    judgement = judge_labels(rows, labels[found], near, neighbours)
    clean[found] = judgement.clean_probability.to(clean)
    suggested[found] = judgement.suggested
    probability[found] = judgement.suggested_probability.to(clean)
    return Judged(clean, suggested, probability, judgement.noise_rate)
