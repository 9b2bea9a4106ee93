"""Refract: judge the whole training set a few times, and learn a doubtful label as one of those it may stand for."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from prism_dml.methods.base import EmbedAll, Method, StepResult, TrainingSet
from prism_dml.methods.classifier import CosineClassifier
from prism_dml.methods.config import MethodConfig
from prism_dml.methods.second_opinion import by_network, pool
from prism_dml.models.embedder import Embedder
from prism_dml.retrieval import neighbour_graph
from prism_dml.selection import Selection
from prism_dml.selection.cross_fit import judge_labels
from prism_dml.selection.discriminant import matrix_power, within_classes

PARTS, FIRST = 32, 2
"""The first look comes after a thirty-second of the run, or after two epochs where that is earlier: of few images,
wrong labels are soon known by heart."""

APART, FEW = 0.5, 2
"""Epochs from one look to the next, at least; and epochs below which a run has one look only, the last: more would cost
too much beside so little training."""

BELIEVED = 0.5
"""Probability of being right from which on a label is believed as given."""

OTHERS = 4
"""Classes beside the given one that a doubtful sample may be learned as: the most probable ones."""

EVIDENCE = 0.5
"""What the judge's evidence on a class counts beside the network's: half, as both see the same image."""

EVENED = 0.25
"""Embeddings are scaled by their covariance within classes to minus this power: 0 does nothing, 1/2 whitens."""

NEIGHBOURS, EXACT_UP_TO = 64, 5_000
"""Nearest neighbours that help to name the class of a sample; on a CPU, of more samples nearly the nearest."""

_LEAST_LISTED = 1e-3  # of the probability: below it a sample is taken to be of none of the listed classes
_LEAST_RATE = 1e-3  # so far the rate is kept from 0 and 1, that it alone makes no weight 0


class Judged(NamedTuple):
    """What is believed of N labels.

    Attributes:
        classes: (N, 1 + OTHERS) the given class, and the most probable ones of the others.
        chances: (N, 1 + OTHERS) probability of each.
        suggested: (N,) the most probable class.
        probability: (N,) of that class.
        nowhere: (N,) probability of no class.
        rate: share of wrong labels, in [0, 1].
        confusion: (C, C) how often each class is given each label; None: labels are wrong as any other alike.
    """

    classes: Tensor
    chances: Tensor
    suggested: Tensor
    probability: Tensor
    nowhere: Tensor
    rate: float
    confusion: Tensor | None = None

    @property
    def clean(self) -> Tensor:
        """Probability that the given label is right, (N,)."""
        return self.chances[:, 0]


class WarmClassifier(CosineClassifier):
    """The normalised softmax at the temperature 0.1: 0.05, usual where all labels are believed, was worse here."""

    TEMPERATURE = 0.1


class Refract(Method):
    """Normalised softmax on labels that are judged, and put right as far as is known, as the embedding learns.

    All labels are believed at first. After a 32nd of the run, or two epochs where that is earlier, and then ever
    more rarely (in a run of few epochs later and fewer times, see `FEW`), the whole training set is embedded without
    augmentation and every label judged by the class means of the others that are trusted, leave-one-out and in folds
    (`judge_labels`): calibrated probabilities, and the share of wrong labels, come from the likelihood of the given
    labels. A label that is more likely right than wrong is believed. Of any other the loss is
    -log(w_0 + sum_k w_k p_k), where the network gives class k the probability p_k: the likelihood of the label, were it
    wrong as often as was found. w_k is how often the label would be seen in class
    k, times the root of the judge's evidence for it, for the given class and the most probable others; w_0 stands for
    no class, as if for any. So the network settles, step by step, which of them the sample is. Of few classes with
    many samples each, all labels are learned so, by how often each class is given each label. No noise rate, and no
    memory of embeddings.

    The softmax narrows the classes of the training set more in some directions than in others; classes that are new
    are not as narrow there. So the embedding that is judged, validated and saved is scaled, half-way to where the
    spread within the believed classes is the same in all directions (`EVENED`), as the last look found it.

    A step costs O(B.C.D) beside the network. A look costs a forward pass of the N samples, O(N.(C + D).D) time, and
    O(N^1.5.D) for their neighbours, on an accelerator O(N^2.D). What is believed takes 65 bytes a sample.
    Source: PRISM (Liu et al., CVPR 2021), sec. 3, for trust by the similarity to class means; normalised softmax: Zhai
    and Wu, BMVC 2019; the likelihood of a noisy label: Patrini et al., CVPR 2017; scaling by the covariance
    within classes: Hatch et al., Interspeech 2006, who whiten; the rest is ours.
    """

    name = "refract"
    summary = "normalised softmax; labels are judged a few times in a run, and put right as far as is known"
    selects = True
    learns_from_rejected = True
    trusted: Tensor
    targets: Tensor
    weights: Tensor
    anywhere: Tensor
    scaling: Tensor
    rate: Tensor
    parts: Tensor

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
        classes, chances = _certain(data.labels)
        self.register_buffer("trusted", torch.ones(data.num_samples, dtype=torch.bool))  # labels as given
        self.register_buffer("targets", classes)  # (N, 1 + OTHERS) the given label, the most probable others
        self.register_buffer("weights", chances)  # (N, 1 + OTHERS) w_k of these
        self.register_buffer("anywhere", torch.zeros(data.num_samples))  # w_0
        self.register_buffer("scaling", torch.eye(self.embedding_dim))  # (D, D), symmetric, of the embeddings
        self.register_buffer("rate", torch.zeros(()))
        self.register_buffer("parts", torch.zeros((), dtype=torch.long))  # finished so far
        self._looks: list[int] = []  # after so many parts

    def proxies(self) -> list[nn.Parameter]:
        """The class weights."""
        return [self.class_weights]

    def look_every(self, epoch: int, steps: int) -> int:
        """Steps of a part of the run; after which parts all is judged is settled here."""
        part = min(math.ceil(steps / PARTS), FIRST * epoch)
        looks: list[int] = []
        for parts in range(1, math.ceil(steps / part)):
            if _is_look(parts) and (not looks or (parts - looks[-1]) * part >= APART * epoch):
                looks.append(parts)
        self._looks = looks if steps >= FEW * epoch else looks[-1:]
        return part

    def on_epoch_start(self, embed_all: EmbedAll) -> None:
        """Judge all labels, if it is time to."""
        if int(self.parts) in self._looks:
            embeddings = embed_all(self.embedder)
            labels = self.data.labels.to(embeddings.device)
            scaled = normalize(embeddings @ self.scaling, dim=1)
            self._believe(_judge(scaled, labels, EXACT_UP_TO))
            self._even_out(embeddings, labels)
        self.parts += 1

    def _believe(self, judged: Judged) -> None:
        """Decide what the next steps learn from."""
        self.trusted.copy_(judged.clean >= BELIEVED)
        self.targets.copy_(judged.classes)
        weights, anywhere = _weigh(judged, len(self.class_weights))
        if judged.confusion is None:
            _, certain = _certain(judged.classes[:, 0])
            weights = torch.where(self.trusted[:, None], certain, weights)
            anywhere = torch.where(self.trusted, 0, anywhere)
        self.weights.copy_(weights)
        self.anywhere.copy_(anywhere)
        self.rate.fill_(judged.rate)

    def _even_out(self, embeddings: Tensor, labels: Tensor) -> None:
        """Scale what `networks` gives by the spread of the believed samples, what could not be embedded left out."""
        believed = self.trusted & (embeddings != 0).any(dim=1)
        _, covariance = within_classes(embeddings, labels, believed.float())
        self.scaling.copy_(matrix_power(covariance, -EVENED))

    def networks(self) -> dict[str, Embedder]:
        """The embedder, scaled as the last look found it."""
        return {"model": self.embedder.mapped(self.scaling)}

    def forward(self, images: Tensor, labels: Tensor, index: Tensor) -> StepResult:
        """Learn from a batch; `kept` are the labels believed as given, though doubtful ones teach too."""
        classifier = WarmClassifier(self.embedder, self.class_weights)
        chances = classifier(images).softmax(dim=1).gather(1, self.targets[index])  # (B, 1 + OTHERS)
        likelihood = self.anywhere[index] + (self.weights[index] * chances).sum(dim=1)
        return StepResult(-likelihood.log().mean(), self.trusted[index])

    @torch.no_grad()
    def judge(self, embeddings: Tensor, labels: Tensor, index: Tensor) -> tuple[Selection, float]:
        """Judge the whole training set by the judge of the looks and by the network, alike; see `Method.judge`.

        Each errs where the other may not: the judge looks at a sample by others that it was trained beside, the network
        by its own label, too. A look hears the judge only, or the network would confirm itself.
        """
        judged = _judge(embeddings, labels)
        known = (embeddings != 0).any(dim=1)
        chances = pool(judged.chances, self._sees(embeddings, judged))
        chances = torch.where(known[:, None], chances, judged.chances)
        clean, doubted = chances[:, 0], (chances[:, 0] < BELIEVED) & (judged.suggested != labels)
        # What the judge takes for another class is suggested to be one, such as all of a class that hardly ever wins.
        other = torch.cat([clean.masked_fill(doubted, -1)[:, None], chances[:, 1:]], dim=1)
        probability, place = other.max(dim=1)
        suggested = judged.classes.gather(1, place[:, None]).squeeze(1)
        selection = Selection(
            keep=clean >= BELIEVED,
            clean_probability=clean,
            threshold=clean.new_tensor(BELIEVED),
            suggested_label=suggested,
            margin=clean - torch.where(probability > clean, probability, 1 - clean),
        )
        return selection, float(1 - clean[known].mean()) if known.any() else 0.0

    def _sees(self, embeddings: Tensor, judged: Judged) -> Tensor:
        """Probability (N, 1 + OTHERS) of each listed class by the network, of embeddings as `networks` gives them."""
        unscaled, temperature = embeddings @ torch.linalg.inv(self.scaling), WarmClassifier.TEMPERATURE
        rate = min(max(judged.rate, _LEAST_RATE), 1 - _LEAST_RATE)
        confusion = None if judged.confusion is None else judged.confusion.clamp(min=_LEAST_RATE)
        return by_network(unscaled, self.class_weights, temperature, judged.classes, rate, confusion)

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
    """Whether all is judged after so many parts, if not too soon: 1, 2, 3, 4, 6, 8, 12, 16, ...; dense early."""
    return parts in (1, 2, 3) or (parts > 3 and parts % 2 == 0 and _is_look(parts // 2))


def _weigh(judged: Judged, num_classes: int) -> tuple[Tensor, Tensor]:
    """Weights w_k (N, 1 + OTHERS) of the listed classes, w_0 (N,) of any: sum_k w_k + C w_0 = 1.

    The probability q_k of a class is taken as proportional to e_k T_k: what the evidence says for it, and how often the
    given label is seen in that class, 1 - r or r / (C - 1), or what is known of the two classes. The weight is
    e_k^EVIDENCE T_k, up to a constant. What is of no class counts as one of the other classes, whichever. Classes that
    are not listed have no weight, as labels of which most are wrong taught too little with it; but a sample that is of
    none of those listed counts as of no class.
    """
    rate = min(max(judged.rate, _LEAST_RATE), 1 - _LEAST_RATE)
    elsewhere = rate / max(num_classes - 1, 1)
    seen = torch.full_like(judged.chances, elsewhere)
    seen[:, 0] = 1 - rate
    if judged.confusion is not None:
        seen = judged.confusion[judged.classes, judged.classes[:, :1]].clamp(min=_LEAST_RATE)
    weights = judged.chances**EVIDENCE * seen ** (1 - EVIDENCE)
    lost = judged.chances.sum(dim=1) + judged.nowhere < _LEAST_LISTED
    anywhere = (judged.nowhere.masked_fill(lost, 1.0) / num_classes) ** EVIDENCE * elsewhere ** (1 - EVIDENCE)
    whole = weights.sum(dim=1) + num_classes * anywhere
    return weights / whole[:, None], anywhere / whole


def _judge(embeddings: Tensor, labels: Tensor, exact_up_to: int | None = None) -> Judged:
    """Judge labels (N,) by embeddings (N, D); what could not be embedded, a row of zeros, is believed."""
    classes, chances = _certain(labels)
    suggested, probability = labels.clone(), torch.ones_like(chances[:, 0])
    nowhere = torch.zeros_like(probability)
    found = (embeddings != 0).any(dim=1).nonzero().squeeze(1)
    present, inside = torch.unique(labels[found], return_inverse=True)
    if len(present) < 2:  # nothing to choose from
        return Judged(classes, chances, suggested, probability, nowhere, 0.0)
    rows = embeddings[found]
    near, neighbours = neighbour_graph(rows, min(NEIGHBOURS, len(rows) - 1), exact_up_to)
    judgement = judge_labels(rows, inside, near, neighbours)
    given, others = judgement.chances[:, :1], judgement.chances[:, 1:]
    best, column = others.topk(min(OTHERS, others.shape[1]), dim=1)
    width = 1 + best.shape[1]
    classes[found, 1:width] = present[judgement.classes.gather(1, 1 + column)]
    chances[found, :width] = torch.cat([given, best], dim=1).to(chances)
    suggested[found] = present[judgement.suggested]
    probability[found] = judgement.suggested_probability.to(probability)
    nowhere[found] = judgement.nowhere.to(nowhere)
    confusion = None
    if judgement.confusion is not None:  # classes of which nothing is there are given the right label
        confusion = torch.eye(int(labels.max()) + 1, device=labels.device)
        confusion[present[:, None], present] = judgement.confusion
    return Judged(classes, chances, suggested, probability, nowhere, judgement.noise_rate, confusion)


def _certain(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Labels (N,) that are believed, as classes and weights (N, 1 + OTHERS)."""
    classes = labels[:, None].repeat(1, 1 + OTHERS)
    weights = torch.zeros(classes.shape, device=labels.device)
    weights[:, 0] = 1
    return classes, weights
