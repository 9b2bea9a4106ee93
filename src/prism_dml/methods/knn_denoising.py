"""Nearest-neighbour denoising: a label is believed if the sample's neighbours vote for it."""

import math

import torch
from torch import Tensor

from prism_dml.methods.base import EmbedAll, TrainingSet
from prism_dml.methods.config import MethodConfig
from prism_dml.methods.mcl import MCL
from prism_dml.models.embedder import Embedder
from prism_dml.retrieval import nearest_neighbours
from prism_dml.selection import Selection

NEIGHBOURS = 10
"""Number of neighbours that vote: few enough for classes of twenty samples of which half are wrong."""


class KNNDenoising(MCL):
    """Memory contrastive loss on the samples whose neighbours at the end of the last epoch vote for their label.

    Ten neighbours among the whole training set, without augmentation; the first epoch believes all. No noise rate.
    Source: Galanakis et al., VISAPP 2024 ("Nearest neighbor-based data denoising for deep metric learning").
    """

    name = "knn-denoising"
    summary = "memory contrastive loss on the samples whose label wins the vote of their nearest neighbours"
    selects = True
    trusted: Tensor
    epochs: Tensor

    def __init__(self, embedder: Embedder, data: TrainingSet, config: MethodConfig) -> None:
        super().__init__(embedder, data, config)
        self.register_buffer("trusted", torch.ones(data.num_samples, dtype=torch.bool))
        self.register_buffer("epochs", torch.zeros((), dtype=torch.long))  # begun so far

    def on_epoch_start(self, embed_all: EmbedAll) -> None:
        """Let the neighbours vote, from the second epoch on."""
        if self.epochs > 0:
            embeddings = embed_all(self.embedder)
            self.trusted.copy_(vote(embeddings, self.data.labels.to(embeddings.device)).keep)
        self.epochs += 1

    def _trusted(self, embeddings: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        return self.trusted[index]

    def judge(self, embeddings: Tensor, labels: Tensor, index: Tensor) -> tuple[Selection, float]:
        """Judge the whole training set by its neighbours' vote; see `Method.judge`."""
        selection = vote(embeddings, labels)
        return selection, _share(~selection.keep)

    @property
    def noise_rate_estimate(self) -> float:
        """The share of labels voted down."""
        return _share(~self.trusted)


@torch.no_grad()
def vote(embeddings: Tensor, labels: Tensor, neighbours: int = NEIGHBOURS) -> Selection:
    """Judge labels by those of the nearest neighbours; a label with as many votes as any other is kept.

    Args:
        embeddings: (N, D) of a whole data set.
        labels: (N,) integers >= 0.
        neighbours: number of votes on each sample, at most N - 1.

    Returns:
        clean_probability is the share of votes for the given label, margin its lead over the best other label, both in
        votes / neighbours; there is no one threshold (NaN).
    """
    _, found = nearest_neighbours(embeddings, k=min(neighbours, len(labels) - 1))  # (N, K)
    votes = labels[found]
    support = (votes[:, :, None] == votes[:, None, :]).sum(
        dim=2
    )  # (N, K) votes for what each neighbour votes for
    own = votes == labels[:, None]
    given = own.sum(dim=1)
    best_other = support.masked_fill(own, 0).amax(dim=1)
    suggested = votes.gather(1, support.argmax(dim=1, keepdim=True)).squeeze(1)
    keep = given >= best_other
    return Selection(
        keep=keep,
        clean_probability=given / votes.shape[1],
        threshold=embeddings.new_tensor(math.nan),
        suggested_label=torch.where(keep, labels, suggested),
        margin=(given - best_other) / votes.shape[1],
    )


def _share(chosen: Tensor) -> float:
    return float(chosen.double().mean())
