"""What a memory says of a batch: similarity to every class, leave-one-out, and what follows for each label."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from prism_dml.selection.bank import MemoryBank
from prism_dml.selection.noise_rate import implausibility
from prism_dml.selection.similarity import (
    centre_similarity,
    exact_similarity,
    vmf_parameters,
)

Similarity = Literal["centre", "exact", "vmf", "proxy"]

_CACHED = (
    1 << 18
)  # similarities weighed at a time on the CPU: the passes over them then stay in a core's cache
_BLOCK = 128  # classes of which the best is found first, then its place


class Evidence(NamedTuple):
    """What is known of each label of a batch.

    Attributes:
        log_probability: (B,) float32, log-softmax over the classes present, at the given label; 0 where unknown. That
            of vMF's densities goes down to some -100, where the probability itself would be 0.
        known: (B,) bool, whether there is anything to compare the given label with.
        suggested: (B,) most similar class; the given label where unknown.
        margin: (B,) similarity to the given class less that to the best other one; 0 where unknown.
        implausible: (B,) see `noise_rate.implausibility`; NaN if not asked for.
    """

    log_probability: Tensor
    known: Tensor
    suggested: Tensor
    margin: Tensor
    implausible: Tensor


def weigh(
    scores: Tensor, present: Tensor, labels: Tensor, temperature: float = 1.0, ranked: bool = True
) -> Evidence:
    """Evidence for labels from similarities.

    Args:
        scores: (B, C) similarity T(x, k) of samples to classes, -inf where there is nothing to compare with, as
            `compare` gives it; overwritten, as at B x C numbers each copy costs about as much as the softmax itself.
        present: (C,) whether any sample can be compared with class k.
        labels: (B,) given labels.
        temperature: of the softmax, above 0; published: 1.
        ranked: whether `implausible` is asked for, which is another look at all B x C numbers.

    Source: PRISM (Liu et al., CVPR 2021), eq. 1, over the classes present.
    """
    rows = max(len(labels), 1)
    if scores.device.type == "cpu" and not torch.compiler.is_compiling():  # which joins the passes itself
        rows = max(_CACHED // scores.shape[1], 1)
    parts = [
        _weigh_rows(some, present, given, temperature, ranked)
        for some, given in zip(torch.split(scores, rows), torch.split(labels, rows), strict=True)
    ]
    log_probability, given, best_other, nearest, implausible = map(torch.cat, zip(*parts, strict=True))
    known = given > -math.inf
    # Of equals the first, as argmax does.
    ahead = (given > best_other) | ((given == best_other) & (labels < nearest))
    return Evidence(
        log_probability=torch.where(known, log_probability, 0.0),
        known=known,
        suggested=torch.where(known & ~ahead, nearest, labels),
        margin=torch.where(known & (best_other > -math.inf), given - best_other, 0.0),
        implausible=implausible,
    )


def _weigh_rows(
    scores: Tensor, present: Tensor, labels: Tensor, temperature: float, ranked: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Log-softmax and score of the given class, score and place of the best other, implausibility; (B,) each."""
    column = labels[:, None]
    given = scores.gather(1, column).squeeze(1)
    sharpened = scores if temperature == 1 else scores / temperature
    log_probability = sharpened.log_softmax(dim=1).gather(1, column).squeeze(1)
    implausible = implausibility(scores, given, present, given > -math.inf) if ranked else given * math.nan
    return (log_probability, given, *_max(scores.scatter_(1, column, -math.inf)), implausible)


def _max(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Greatest value in each row of (B, C) and its first place, (B,) each: `max`, but on the CPU three times as fast.

    Places take eight times as long to find as values, so they are looked for in one block of each row.
    """
    last = scores.shape[1] - _BLOCK
    if last < 0 or scores.device.type != "cpu":
        best, place = scores.max(dim=1)
        return best, place
    blocks = scores.unfold(1, _BLOCK, _BLOCK).amax(dim=2)
    best, block = torch.cat([blocks, scores[:, last:].amax(dim=1, keepdim=True)], dim=1).max(dim=1)
    start = (block * _BLOCK).clamp(max=last)
    inside = scores.gather(1, start[:, None] + torch.arange(_BLOCK))
    return best, start + inside.argmax(dim=1)


def compare(
    bank: MemoryBank, similarity: Similarity, embeddings: Tensor, labels: Tensor, index: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Similarity T(x, k) of a batch to each class of the bank, -inf to those without entries, and which have some.

    With `index`, a sample's own entries do not count for its given class, which has none if there are no others.

    Args:
        bank: memory to compare with.
        similarity: "centre", "exact" or "vmf".
        embeddings: (B, D) float32 unit vectors.
        labels: (B,) given labels.
        index: (B,) sample numbers, negative if not known; or None.

    Returns:
        (B, C) similarities and (C,) bool.
    """
    counts = bank.class_counts
    present = counts > 0
    absent = torch.where(present, 0.0, -math.inf)
    own = None if index is None else bank.own_entries(labels, index)
    if own is not None:  # of the given classes without the samples themselves
        sums, rest = bank.class_sums[labels] - own[0], counts[labels] - own[1]  # (B, D), (B,)
        alone = (embeddings * sums).sum(dim=1) / rest.clamp(min=1)
    if similarity == "vmf":
        lengths, classes = bank.class_lengths, bank.num_classes
        if own is not None:  # at once: it is many small steps
            lengths, counts = torch.cat([lengths, sums.norm(dim=1).float()]), torch.cat([counts, rest])
        offset, slope = vmf_parameters(lengths, counts, classes, bank.embedding_dim)
        scores = centre_similarity(bank, embeddings)
        torch.addcmul(offset[:classes] + absent, scores, slope[:classes], out=scores)
        if own is not None:
            alone = offset[classes:] + slope[classes:] * alone
    else:
        scores = (exact_similarity if similarity == "exact" else centre_similarity)(bank, embeddings).add_(
            absent
        )
    if own is None:
        return scores, present
    alone = alone.to(scores).masked_fill(rest == 0, -math.inf)
    return scores.scatter_(1, labels[:, None], alone[:, None]), present
