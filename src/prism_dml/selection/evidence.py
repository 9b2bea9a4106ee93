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
    pooled_resultant,
    vmf_similarity,
)

Similarity = Literal["centre", "exact", "vmf", "proxy"]

_CACHED = (
    1 << 18
)  # similarities weighed at a time on the CPU: the passes over them then stay in a core's cache


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
        scores: (B, C) similarity T(x, k) of samples to classes; -inf where there is nothing to compare with;
            overwritten, as at B x C numbers each copy costs about as much as the softmax itself.
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
    return Evidence(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _weigh_rows(
    scores: Tensor, present: Tensor, labels: Tensor, temperature: float, ranked: bool
) -> Evidence:
    column = labels[:, None]
    scores = scores.add_(torch.where(present, 0.0, -math.inf))
    given = scores.gather(1, column).squeeze(1)
    known = given > -math.inf
    sharpened = scores if temperature == 1 else scores / temperature
    log_probability = sharpened.log_softmax(dim=1).gather(1, column).squeeze(1)
    nothing = torch.full_like(given, math.nan)
    implausible = implausibility(scores, given, present, known) if ranked else nothing
    best_other, nearest = scores.scatter_(1, column, -math.inf).max(dim=1)
    # Of equals the first, as argmax does.
    ahead = (given > best_other) | ((given == best_other) & (labels < nearest))
    return Evidence(
        log_probability=torch.where(known, log_probability, 0.0),
        known=known,
        suggested=torch.where(known & ~ahead, nearest, labels),
        margin=torch.where(known & (best_other > -math.inf), given - best_other, 0.0),
        implausible=implausible,
    )


def compare(
    bank: MemoryBank, similarity: Similarity, embeddings: Tensor, labels: Tensor, index: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Similarity T(x, k) of a batch to each class of the bank, and which classes have entries.

    With `index`, a sample's own entries do not count for its given class, to which the similarity is -inf if there
    are no others.

    Args:
        bank: memory to compare with.
        similarity: "centre", "exact" or "vmf".
        embeddings: (B, D) float32 unit vectors.
        labels: (B,) given labels.
        index: (B,) sample numbers, negative if not known; or None.

    Returns:
        (B, C) similarities and (C,) bool.
    """
    counts, pooled = bank.class_counts, bank.class_sums.new_zeros(())
    if similarity == "vmf":
        # Of the sums themselves, in float64, it takes twice the time.
        lengths = bank.centres.norm(dim=1).double() * counts  # (C,)
        pooled = pooled_resultant(lengths, counts)
        scores = vmf_similarity(bank.centres, lengths, counts, embeddings, pooled)
    else:
        scores = (exact_similarity if similarity == "exact" else centre_similarity)(bank, embeddings)
    present = counts > 0
    if index is None:
        return scores, present

    own_sums, own_counts = bank.own_entries(labels, index)
    sums, counts = bank.class_sums[labels] - own_sums, counts[labels] - own_counts  # (B, D), (B,)
    if similarity == "vmf":
        means = sums / counts.clamp(min=1)[:, None]
        given = vmf_similarity(means, sums.norm(dim=1), counts, embeddings, pooled, paired=True)
    else:
        given = (embeddings * sums).sum(dim=1) / counts.clamp(min=1)
    given = given.to(scores).masked_fill(counts == 0, -math.inf)
    return scores.scatter_(1, labels[:, None], given[:, None]), present
