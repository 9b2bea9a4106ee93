"""What is compared when the labels of a run are judged: what the network makes of the images, what is not learned."""

from dataclasses import dataclass

import torch
from torch import Tensor

from prism_dml.methods.base import EmbedAll
from prism_dml.methods.looks import APART, FEW
from prism_dml.models.embedder import Embedder
from prism_dml.models.levels import widths
from prism_dml.models.patches import FILTERS, LENGTH, patch_features
from prism_dml.selection.levels import DIRECTIONS, MOST_DIRECTIONS, joined, num_compared, side_by_side

KNOWN_BY_HEART = 8
"""Epochs from which on the head of a frozen backbone may have learned wrong labels by heart, so that its embeddings
would confirm them: then what the backbone makes of the images is compared beside them."""

FEWER = 2
"""So many times fewer patches, and directions, where blocks are not compared: to judge by them before the first step
must not take longer than a look."""


@dataclass(frozen=True)
class Compared:
    """What is compared in a run.

    Attributes:
        levels: length of what each block of the network shows, where blocks are compared, not embeddings.
        width: numbers of what is not learned, found before the first step; 0: it is not.
        beside: whether these are compared beside what is learned; else only before anything is.
        few: whether they are of fewer patches.
    """

    levels: tuple[int, ...] = ()
    width: int = 0
    beside: bool = False
    few: bool = False

    def find_unlearned(self, embedder: Embedder, embed_all: EmbedAll, device: torch.device) -> Tensor:
        """Unit rows (N, width): how the images respond to patches of each other, or what a frozen backbone sees."""
        if widths(embedder):
            seen = patch_features(embed_all, device, FILTERS // FEWER if self.few else FILTERS)
        else:
            seen = embed_all(embedder.backbone)
        most = DIRECTIONS // FEWER if self.few else MOST_DIRECTIONS
        return side_by_side(seen, (seen.shape[1],), most=most)

    def rows(self, seen: Tensor, embeddings: Tensor, unlearned: Tensor) -> Tensor:
        """Unit rows (N, M) to judge by.

        Args:
            seen: (N, D + L) embeddings and levels, see `WithLevels`.
            embeddings: (N, D) in the place of those, as unit vectors.
            unlearned: (N, width), as found.
        """
        if self.levels:
            return side_by_side(seen[:, embeddings.shape[1] :], self.levels, beside=unlearned)
        return joined(embeddings, unlearned) if self.beside else embeddings


def plan_compared(embedder: Embedder, samples: int, epochs: float, pairs: bool) -> Compared:
    """What is compared in a run.

    Args:
        embedder: that is trained.
        samples: number of them.
        epochs: of the run.
        pairs: whether pairs of classes are learned: of few classes with many samples each.
    """
    blocks, frozen = widths(embedder), embedder.frozen
    levels = blocks if epochs >= (FEW if pairs else APART) else ()
    few = not (levels or frozen)
    early = epochs < FEW and (frozen or bool(blocks))  # judged before the first step
    beside = bool(levels) or (frozen and epochs >= KNOWN_BY_HEART) or (few and early)
    if not (early or beside):
        return Compared()
    numbers, most = LENGTH if blocks else embedder.head.in_features, MOST_DIRECTIONS
    if few:
        numbers, most = LENGTH // FEWER, DIRECTIONS // FEWER
    return Compared(levels, num_compared(samples, numbers, most), beside, few)
