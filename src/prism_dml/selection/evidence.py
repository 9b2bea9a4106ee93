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


class Evidence(NamedTuple):
    """What is known of each label of a batch.

    Attributes:
        log_probability: (B,) float32, log-softmax over the classes present, at the given label; 0 where unknown. That
            of vMF's densities goes down to some -100, where the probability itself would be 0.
        known: (B,) bool, whether there is anything to compare the given label with.
        suggested: (B,) most similar class; the given label where unknown.
        margin: (B,) similarity to the given class less that to the best other one; 0 where unknown.
        implausible: (B,) see `noise_rate.implausibility`.
    """

    log_probability: Tensor
    known: Tensor
    suggested: Tensor
    margin: Tensor
    implausible: Tensor


def weigh(scores: Tensor, present: Tensor, labels: Tensor, temperature: float = 1.0) -> Evidence:
    """Evidence for labels from similarities.

    Args:
        scores: (B, C) similarity T(x, k) of samples to classes; -inf where there is nothing to compare with.
        present: (C,) whether any sample can be compared with class k.
        labels: (B,) given labels.
        temperature: of the softmax, above 0; published: 1.

    Source: PRISM (Liu et al., CVPR 2021), eq. 1, over the classes present.
    """
    column = labels[:, None]
    scores = scores.masked_fill(~present, -math.inf)
    given = scores.gather(1, column).squeeze(1)
    known = given > -math.inf
    best_other = scores.scatter(1, column, -math.inf).amax(dim=1)
    log_probability = (scores / temperature).log_softmax(dim=1).gather(1, column).squeeze(1)
    return Evidence(
        log_probability=torch.where(known, log_probability, 0.0),
        known=known,
        suggested=torch.where(known, scores.argmax(dim=1), labels),
        margin=torch.where(known & (best_other > -math.inf), given - best_other, 0.0),
        implausible=implausibility(scores, given, present, known),
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
    pooled = bank.class_sums.new_zeros(())
    if similarity == "vmf":
        pooled = pooled_resultant(bank.class_sums.norm(dim=1), bank.class_counts)
        scores = vmf_similarity(bank.class_sums, bank.class_counts, embeddings, pooled)
    else:
        scores = (exact_similarity if similarity == "exact" else centre_similarity)(bank, embeddings)
    present = bank.class_counts > 0
    if index is None:
        return scores, present

    own_sums, own_counts = bank.own_entries(labels, index)
    sums, counts = bank.class_sums[labels] - own_sums, bank.class_counts[labels] - own_counts  # (B, D), (B,)
    if similarity == "vmf":
        given = vmf_similarity(sums, counts, embeddings, pooled, paired=True)
    else:
        given = (embeddings * sums).sum(dim=1) / counts.clamp(min=1)
    given = given.to(scores).masked_fill(counts == 0, -math.inf)
    return scores.scatter_(1, labels[:, None], given[:, None]), present
