"""Refract: judge the whole training set a few times, and learn each label as one of those it may stand for."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from prism_dml.losses import InstanceLoss
from prism_dml.methods.base import EmbedAll, Method, StepResult, TrainingSet
from prism_dml.methods.beliefs import Judged, certain, judge, weigh
from prism_dml.methods.classifier import CosineClassifier
from prism_dml.methods.compared import Compared, plan_compared
from prism_dml.methods.config import MethodConfig
from prism_dml.methods.looks import PARTS, plan_looks
from prism_dml.methods.second_opinion import by_network, pool
from prism_dml.models.embedder import Embedder
from prism_dml.models.levels import WithLevels, widths
from prism_dml.models.patches import LENGTH
from prism_dml.selection import CalibratedSelection
from prism_dml.selection.discriminant import matrix_power, within_classes
from prism_dml.selection.label_model import learns_pairs
from prism_dml.selection.levels import leading, num_compared

BELIEVED, OF_MANY = 0.5, 0.8
"""Probability of being right from which on a label is believed; and in training, where classes are few and have many
samples each: there are enough that are surely right, and of what people mistake the judge believes too much."""

SURENESS = 4
"""A doubtful sample is drawn as often as the probability of its most probable class, to this power, says: what may be
anything teaches little, and takes a place in the batch."""

INSTANCE, MOST = 1 / 40, 3.0
"""Weight of the loss by which images are told apart by their patch features, beside that of their labels, at first: so
much for each sample that a class has on average, and at most. Of a large class the label leaves more of an image
untold. It falls to nothing by the end of the run: what serves new classes takes from those that are learned."""

EVENED = 0.25
"""Embeddings are scaled by their covariance within classes to minus this power: 0 does nothing, 1/2 whitens."""


class WarmClassifier(CosineClassifier):
    """The normalised softmax at the temperature 0.1: 0.05, usual where all labels are believed, was worse here."""

    TEMPERATURE = 0.1


class Refract(Method):
    """Normalised softmax on labels that are judged, and put right as far as is known, as the embedding learns.

    All labels are believed at first. After a 32nd of the run, or two epochs where that is earlier, and then ever
    more rarely (in a run of few epochs fewer times, see `plan_looks`), the whole training set is embedded without
    augmentation and every label judged by the class means of the others that are trusted, leave-one-out and in folds
    (`judge_labels`): calibrated probabilities, and the share of wrong labels, come from the likelihood of the given
    labels. From then on the loss of each sample is -log(w_0 + sum_k w_k p_k), where the network gives class k the
    probability p_k: the likelihood of its label, were labels wrong as often as was found. w_k is how often the label
    would be seen in class k, times the root of the judge's evidence for it, for the given class and the most probable
    others; w_0 stands for no class, as if for any. So no label is taken as given, and the network settles, step by
    step, which of the classes a sample is. One whose label is not believed (`BELIEVED`) is drawn the more rarely,
    the less is known of it (`SURENESS`). Of few classes with many samples each, how often each class is given each
    label is learned, too. No noise rate, and no memory of embeddings.

    The softmax narrows the classes of the training set more in some directions than in others; classes that are new
    are not as narrow there. So the embedding that is validated and saved is scaled, half-way to where the spread within
    the believed classes is the same in all directions (`EVENED`), as the last look that embedded them found it.

    Where the blocks of the network are known (`levels`), the judge compares what they see: what comes early in it knows
    less of the labels that it learns, wrong ones included. Beside that it compares how images respond to patches of
    each other (`PatchFeatures`), which knows of no label. That is learned, too, ever less as the run goes on: of what
    the backbone makes of an image, a linear map shall tell its own patch features among those of the batch
    (`InstanceLoss`), so that labels, wrong ones included, are not all that is left of it. Classes that are new gain by
    that; of few classes with many samples each it is left out. On other networks, in a run of few epochs of such
    classes, and in less than half an epoch, the judge compares the embeddings, scaled, and only labels are learned;
    beside them, in a run of many epochs, what a frozen backbone makes of the images. In a run of less than two epochs
    the one look comes before the first step, and compares patch features alone where blocks are known, and what a
    frozen backbone makes of the images; where blocks are not compared in the end, patch features are, beside the
    embeddings. See `plan_compared`.

    A step costs O(B.C.D + B.(B + F).L) beside the network, of embeddings of length D, F features before the head and L
    numbers of patch features, N / 80, from 256 to 1,024 (1,152 of up to 256 images). A look costs a forward pass of the
    N samples, O(N.(C + M).M) time, and O(N^1.5.M) for their neighbours, on an accelerator O(N^2.M), of M numbers that
    are compared: as many as L if those are blocks, else D, and L more where what a frozen backbone makes of the images
    is beside them, 128 more where patch features are. With blocks of the small network it takes 20 to 25 kB a sample,
    the judge's share included. Patch features are found once, in two passes over the images, together shorter than a
    forward pass where these are decoded already, and with 12 kB a sample (20 of 8,000), of which half a kB to 2 kB
    stay, as of a frozen backbone's where those are compared (a quarter of a kB where blocks are not); what is believed
    takes 69 bytes.
    Source: PRISM (Liu et al., CVPR 2021), sec. 3, for trust by the similarity to class means; normalised softmax: Zhai
    and Wu, BMVC 2019; the likelihood of a noisy label: Patrini et al., CVPR 2017; scaling by the covariance
    within classes: Hatch et al., Interspeech 2006, who whiten; `models/levels.py`, `patches.py` and
    `InstanceLoss` name theirs; the rest is ours.
    """

    name = "refract"
    summary = "normalised softmax; labels are judged a few times in a run, and put right as far as is known"
    selects = True
    learns_from_rejected = True
    reads = frozenset({"noise_rate"})  # that it is auto
    trusted: Tensor
    targets: Tensor
    weights: Tensor
    anywhere: Tensor
    draws: Tensor
    unlearned: Tensor
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
        classes, chances = certain(data.labels)
        self.register_buffer("trusted", torch.ones(data.num_samples, dtype=torch.bool))  # see `decided`
        self.register_buffer("targets", classes)  # (N, 1 + OTHERS) the given label, the most probable others
        self.register_buffer("weights", chances)  # (N, 1 + OTHERS) w_k of these
        self.register_buffer("anywhere", torch.zeros(data.num_samples))  # w_0
        self.register_buffer("draws", torch.ones(data.num_samples))  # see `draw_weights`
        # (N, width) what is seen of the images that is not learned: patch features, or those of a frozen backbone
        self.register_buffer("unlearned", torch.zeros(data.num_samples, 0, dtype=torch.half))
        self._pairs = learns_pairs(data.num_samples, data.num_classes)
        self._believed_from = OF_MANY if self._pairs else BELIEVED
        self._tells_apart = bool(widths(embedder)) and not self._pairs
        if self._tells_apart:  # from what the backbone makes of an image to its patch features
            width = num_compared(data.num_samples, LENGTH)
            self.patch_projection = CosineClassifier.draw(width, embedder.head.in_features, seed=1)
        self.instance_loss = InstanceLoss()
        self._instance_weight = min(INSTANCE * data.num_samples / data.num_classes, MOST)
        self.register_buffer("scaling", torch.eye(self.embedding_dim))  # (D, D), symmetric, of the embeddings
        self.register_buffer("rate", torch.zeros(()))
        self.register_buffer("parts", torch.zeros((), dtype=torch.long))  # finished so far
        self._all_parts = PARTS  # of the run
        self._looks: list[int] = []  # after so many parts
        self._compared = Compared()

    def proxies(self) -> list[nn.Parameter]:
        """The class weights."""
        return [self.class_weights]

    def look_every(self, epoch: int, steps: int) -> int:
        """Steps of a part of the run; after which parts all is judged, and by what, is settled here."""
        beforehand = bool(widths(self.embedder)) or self.embedder.frozen
        part, self._looks = plan_looks(epoch, steps, beforehand)
        self._all_parts = math.ceil(steps / part)
        self._compared = plan_compared(self.embedder, len(self.unlearned), steps / epoch, self._pairs)
        self.unlearned = self.unlearned.new_zeros(len(self.unlearned), self._compared.width)
        return part

    def on_epoch_start(self, embed_all: EmbedAll) -> None:
        """Judge all labels, if it is time to."""
        if int(self.parts) == 0 and self._compared.width:  # once: it is the same at all times
            device = self.unlearned.device
            self.unlearned.copy_(self._compared.find_unlearned(self.embedder, embed_all, device))
        if int(self.parts) in self._looks:
            self._look(embed_all)
        self.parts += 1

    def _look(self, embed_all: EmbedAll) -> None:
        """Judge all labels, and decide what the next steps learn from.

        What cannot be read is not drawn: it is believed, and would take the places of doubtful samples.
        """
        labels = self.data.labels.to(self.unlearned.device)
        if int(self.parts) == 0:  # nothing is learned yet
            self._believe(judge(leading(self.unlearned), labels))
            self.draws *= (self.unlearned != 0).any(dim=1)
            return
        seen = embed_all(WithLevels(self.embedder) if self._compared.levels else self.embedder)
        embeddings = seen[:, : self.embedding_dim]
        readable = (embeddings != 0).any(dim=1)
        scaled = normalize(embeddings @ self.scaling, dim=1)
        self._believe(judge(self._compared.rows(seen, scaled, self.unlearned), labels))
        self.draws *= readable
        self._even_out(embeddings, labels, readable)

    def _believe(self, judged: Judged) -> None:
        """Decide what the next steps learn from."""
        weights, anywhere = weigh(judged, len(self.class_weights))
        self.trusted.copy_(judged.clean >= self._believed_from)
        self.targets.copy_(judged.classes)
        self.weights.copy_(weights)
        self.anywhere.copy_(anywhere)
        self.rate.fill_(judged.rate)
        surest = judged.chances.max(dim=1).values.clamp(max=1).to(self.draws)
        self.draws = torch.where(self.trusted, 1.0, surest**SURENESS)

    def _even_out(self, embeddings: Tensor, labels: Tensor, readable: Tensor) -> None:
        """Scale what `networks` gives by the spread of the believed samples, what could not be embedded left out."""
        _, covariance = within_classes(embeddings, labels, (self.trusted & readable).float())
        self.scaling.copy_(matrix_power(covariance, -EVENED))

    def decided(self) -> Tensor:
        """What the last look believed; all before the first."""
        return self.trusted

    def draw_weights(self) -> Tensor:
        """1 for a believed sample; a doubtful one is drawn the more often, the surer its most probable class is."""
        return self.draws

    def networks(self) -> dict[str, Embedder]:
        """The embedder, scaled as the last look found it."""
        return {"model": self.embedder.mapped(self.scaling)}

    def forward(self, images: Tensor, labels: Tensor, index: Tensor) -> StepResult:
        """Learn from a batch; `kept` are the labels that are believed, though doubtful ones teach too."""
        represented = self.embedder.represent(images)  # (B, F)
        embeddings = normalize(self.embedder.project(represented), dim=1, eps=1e-6)
        logits = WarmClassifier(self.embedder, self.class_weights).logits(embeddings)
        loss = self._label_loss(logits, index)
        if self._compared.levels and self._tells_apart:
            projected = linear(represented.to(self.patch_projection.dtype), self.patch_projection)
            told_apart = self.instance_loss(projected, self.unlearned[index])
            past = (self.parts - 1) / self._all_parts  # `parts` counts the present one
            loss = loss + self._instance_weight * (1 - past) * told_apart
        return StepResult(loss, self.trusted[index])

    def _label_loss(self, logits: Tensor, index: Tensor) -> Tensor:
        """-log of the likelihood of the given labels, of logits (B, C)."""
        chances = logits.softmax(dim=1).gather(1, self.targets[index])  # (B, 1 + OTHERS)
        likelihood = self.anywhere[index] + (self.weights[index] * chances).sum(dim=1)
        return -likelihood.log().mean()

    def observer(self) -> nn.Module:
        """The saved network, and what its blocks see, if that is compared."""
        network = self.networks()["model"]
        return WithLevels(network) if self._compared.levels else network

    @torch.no_grad()
    def judge(self, seen: Tensor, labels: Tensor, index: Tensor) -> tuple[CalibratedSelection, float]:
        """Judge the whole training set by the judge of the looks and by the network, alike; see `Method.judge`.

        Each errs where the other may not: the judge looks at a sample by others that it was trained beside, the network
        by its own label, too. A look hears the judge only, or the network would confirm itself.
        """
        embeddings = seen[:, : self.embedding_dim]
        judged = judge(self._compared.rows(seen, embeddings, self.unlearned[index]), labels)
        known = (embeddings != 0).any(dim=1)
        chances = pool(judged.chances, self._sees(embeddings, judged))
        chances = torch.where(known[:, None], chances, judged.chances)
        clean, doubted = chances[:, 0], (chances[:, 0] < BELIEVED) & (judged.suggested != labels)
        # What the judge takes for another class is suggested to be one, such as all of a class that hardly ever wins.
        other = torch.cat([clean.masked_fill(doubted, -1)[:, None], chances[:, 1:]], dim=1)
        probability, place = other.max(dim=1)
        suggested = judged.classes.gather(1, place[:, None]).squeeze(1)
        selection = CalibratedSelection(
            keep=clean >= BELIEVED,
            clean_probability=clean,
            threshold=clean.new_tensor(BELIEVED),
            suggested_label=suggested,
            margin=clean - torch.where(probability > clean, probability, 1 - clean),
            suggested_probability=probability.clamp(min=0),
        )
        return selection, float(1 - clean[known].mean()) if known.any() else 0.0

    def _sees(self, embeddings: Tensor, judged: Judged) -> Tensor:
        """Probability (N, 1 + OTHERS) of each listed class by the network, of embeddings as `networks` gives them."""
        unscaled, temperature = embeddings @ torch.linalg.inv(self.scaling), WarmClassifier.TEMPERATURE
        return by_network(unscaled, self.class_weights, temperature, judged.classes, judged.mistakes)

    @property
    def noise_rate_estimate(self) -> float:
        """The share of wrong labels as last judged; 0 before."""
        return float(self.rate)


class RefractOracle(Refract):
    """Refract on the truly clean samples only: the line that it is measured against."""

    name = "refract-oracle"
    summary = "refract on the truly clean samples (needs the true labels)"
    clean_only = True
