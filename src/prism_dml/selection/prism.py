"""PRISM: which samples of a batch carry a label that can be trusted."""

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from prism_dml.selection.bank import MemoryBank, check_labels
from prism_dml.selection.evidence import Evidence, Similarity, compare, weigh
from prism_dml.selection.noise_rate import NoiseRateEstimator, mean_rate
from prism_dml.selection.selection import Selection
from prism_dml.selection.threshold import SmoothTopR, TopR

Threshold = Literal["smooth", "top-r"]

MOST_REJECTED = 0.5
"""Of a batch an estimate alone never rejects more than this share: where more labels are wrong, give the rate."""

PUBLISHED, SHARPENED = 1.0, 0.05
"""Temperature of the softmax, with a given and with an estimated rate. At 1 the sum over all classes drowns the one
that a wrong label belongs to; towards 0 what counts is the margin to it, which separates better."""

_CHUNK = 4096  # samples of a whole data set judged at a time: bounds the memory to _CHUNK x C


class PRISM(nn.Module):
    """Ranking-based instance selection: a memory of trusted embeddings tells how clean each label looks.

    Call it on a batch before the loss, learn from `selection.keep`, then `enqueue` the kept samples. State (bank,
    class sums, window, estimate, counters) is in `state_dict`; nothing has a gradient; float16 and bfloat16
    embeddings are scored in float32, under autocast too. Time of a step: O(B.C.D) for "centre" and "vmf",
    O(B.M.D) for "exact"; memory O(M.D + C.D + B.C).

    Args:
        num_classes: number C of classes; labels are in [0, C).
        embedding_dim: number D of an embedding's components.
        noise_rate: share R of wrong labels in [0, 1), or "auto" to estimate it as training goes; then everything is
            kept until the memory is full for the first time, and later at most half of it is rejected.
        similarity: "centre" (mean of each class's memory), "exact" (mean cosine to each entry), "vmf" (one von
            Mises-Fisher distribution for each class), "proxy" (given by a proxy-based loss at each call).
        bank_size: number M of embeddings that are remembered; the training set's size is a good choice.
        window: number of batches over which the threshold is smoothed.
        threshold: "smooth" (sTRM) or "top-r" (TRM, a fixed number of each batch).
        warmup: number of first batches that are kept whole.
        temperature: of the softmax over classes, above 0; None: 1, as published, with a given rate or with "vmf",
            whose log-densities are sharp as they are, and 0.05 with an estimated rate.
        bank: memory in place of a new one of `bank_size`, such as a `ShardedBank`.

    Raises:
        ValueError: on a value outside the ranges above, or a bank of other dimensions.

    Source: PRISM (Liu et al., CVPR 2021), sec. 3; "vmf" and "proxy": Liu et al., arXiv 2108.01431.
    """

    batches: Tensor

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        noise_rate: float | Literal["auto"] = "auto",
        similarity: Similarity = "centre",
        bank_size: int = 8192,
        window: int = 30,
        threshold: Threshold = "smooth",
        warmup: int = 0,
        temperature: float | None = None,
        bank: MemoryBank | None = None,
    ) -> None:
        super().__init__()
        _check_choice("similarity", similarity, Similarity)
        _check_choice("threshold", threshold, Threshold)
        if noise_rate != "auto" and not (isinstance(noise_rate, int | float) and 0 <= noise_rate < 1):
            raise ValueError(f'noise_rate must be "auto" or in [0, 1), not {noise_rate!r}')
        if window < 1 or warmup < 0:
            raise ValueError(f"window must be at least 1 and warmup at least 0, not {window} and {warmup}")
        if temperature is not None and not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        if similarity == "vmf" and embedding_dim < 4:
            raise ValueError(f'similarity "vmf" needs embedding_dim of at least 4, not {embedding_dim}')
        self.noise_rate, self.similarity, self.warmup = noise_rate, similarity, warmup
        self.bank = MemoryBank(num_classes, embedding_dim, bank_size) if bank is None else bank
        if (self.bank.num_classes, self.bank.embedding_dim) != (num_classes, embedding_dim):
            raise ValueError(f"bank must be of {num_classes} classes and {embedding_dim} dimensions")
        if temperature is None:
            temperature = SHARPENED if noise_rate == "auto" and similarity != "vmf" else PUBLISHED
        self.temperature = temperature
        sharp = temperature < PUBLISHED or similarity == "vmf"
        self.rule = SmoothTopR(window, in_logarithms=sharp) if threshold == "smooth" else TopR()
        self.estimator = NoiseRateEstimator()
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    @property
    def noise_rate_estimate(self) -> float:
        """The rate as given, or the current estimate: of it at most 0.5 is used, and 0 until the memory is full."""
        return float(self.estimator.estimate) if self.noise_rate == "auto" else float(self.noise_rate)

    @torch.no_grad()
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        index: Tensor | None = None,
        class_similarities: Tensor | None = None,
    ) -> Selection:
        """Judge a batch against the memory, before it enters it.

        Args:
            embeddings: (B, D) unit vectors.
            labels: (B,) integers in [0, C).
            index: (B,) sample numbers, negative if not known; a sample's own entries then do not vouch for it.
            class_similarities: (B, C) similarity to each class's proxies, for similarity "proxy" only.

        Returns:
            A `Selection`. With an empty bank and during warm-up all is kept.

        Raises:
            ValueError: if shapes do not fit, or `class_similarities` is missing or given in vain.
        """
        evidence = self._weigh(embeddings, labels, index, class_similarities)
        rate = self._estimated_rate(evidence) if self.noise_rate == "auto" else self._given_rate(evidence)
        rejected, threshold = self.rule(evidence.log_probability, evidence.known, rate)
        self.batches += 1
        return _selection(evidence, embeddings, ~rejected | (self.batches <= self.warmup), threshold)

    @torch.no_grad()
    def judge(
        self,
        embeddings: Tensor,
        labels: Tensor,
        index: Tensor | None = None,
        class_similarities: Tensor | Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Selection, float]:
        """Judge a whole data set against the memory, changing nothing.

        Args:
            embeddings: (N, D) unit vectors.
            labels: (N,) integers in [0, C).
            index: (N,) sample numbers, negative if not known.
            class_similarities: (N, C), or what gives (n, C) of some of the embeddings, so that N x C numbers are never
                held at once; for similarity "proxy" only.

        Returns:
            A `Selection` that rejects the R.N lowest probabilities, and R: as given, or estimated from all N.

        Raises:
            ValueError: as for a call.
        """
        parts = []
        for start in range(0, max(len(labels), 1), _CHUNK):
            rows = slice(start, start + _CHUNK)
            numbers = None if index is None else index[rows]
            if callable(class_similarities):
                similar: Tensor | None = class_similarities(embeddings[rows])
            else:
                similar = None if class_similarities is None else class_similarities[rows]
            parts.append(self._weigh(embeddings[rows], labels[rows], numbers, similar))
        evidence = Evidence(*(torch.cat(column) for column in zip(*parts, strict=True)))
        rate = mean_rate(evidence.implausible) if self.noise_rate == "auto" else self._given_rate(evidence)
        rejected, threshold = TopR()(evidence.log_probability, evidence.known, rate)
        return _selection(evidence, embeddings, ~rejected, threshold), float(rate)

    def enqueue(self, embeddings: Tensor, labels: Tensor, index: Tensor | None = None) -> None:
        """Remember the kept samples of a batch, after the update; arguments as for a call, ValueError likewise."""
        self.bank.enqueue(embeddings, labels, index)

    def _weigh(
        self, embeddings: Tensor, labels: Tensor, index: Tensor | None, class_similarities: Tensor | None
    ) -> Evidence:
        batch, dim, classes = len(embeddings), self.bank.embedding_dim, self.bank.num_classes
        if embeddings.shape != (batch, dim) or labels.shape != (batch,):
            raise ValueError(
                f"expected embeddings (B, {dim}) and labels (B,), "
                f"not {tuple(embeddings.shape)} and {tuple(labels.shape)}"
            )
        check_labels(labels, classes)
        if index is not None and index.shape != (batch,):
            raise ValueError(f"expected index ({batch},), not {tuple(index.shape)}")
        if (class_similarities is not None) != (self.similarity == "proxy"):
            raise ValueError('class_similarities go with similarity "proxy", and it needs them')
        if class_similarities is not None and class_similarities.shape != (batch, classes):
            raise ValueError(
                f"expected class_similarities (B, {classes}), not {tuple(class_similarities.shape)}"
            )
        labels = labels.long()
        broken = ~_finite(embeddings)[:, None]
        with torch.autocast(embeddings.device.type, enabled=False):
            if class_similarities is not None:
                scores = class_similarities.to(torch.float32, copy=True).masked_fill_(broken, math.nan)
                present = torch.ones_like(self.bank.class_counts, dtype=torch.bool)
            else:
                embeddings = embeddings.float().masked_fill(broken, math.nan)  # infinity, too, tells nothing
                scores, present = compare(self.bank, self.similarity, embeddings, labels, index)
            return weigh(scores, present, labels, self.temperature, ranked=self.noise_rate == "auto")

    def _estimated_rate(self, evidence: Evidence) -> Tensor:
        """The share to reject by the estimate, (): nothing until the memory is full, then at most half.

        The first embeddings tell nothing, so that clean labels look random and the estimate is far too high.
        """
        estimate: Tensor = self.estimator(evidence.implausible).clamp(max=MOST_REJECTED)
        return estimate * (self.bank.total >= self.bank.size)

    def _given_rate(self, evidence: Evidence) -> Tensor:
        return evidence.log_probability.new_tensor(self.noise_rate)


def _selection(evidence: Evidence, embeddings: Tensor, keep: Tensor, threshold: Tensor) -> Selection:
    """What follows; of an embedding that is not finite nothing is known, which else is a reason to keep it."""
    finite = _finite(embeddings)
    probability = evidence.log_probability.exp() * finite
    return Selection(keep & finite, probability, threshold, evidence.suggested, evidence.margin)


def _finite(embeddings: Tensor) -> Tensor:
    """Whether all numbers of an embedding are, (B,) bool of (B, D)."""
    return embeddings.isfinite().all(dim=1)


def _check_choice(name: str, value: str, choices: object) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, not {value!r}")
