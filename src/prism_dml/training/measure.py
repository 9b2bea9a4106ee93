"""Embedding whole sets in the middle of a run, and what validation says of them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import torch
from torch import Tensor, nn

from prism_dml.data import ImageBatches
from prism_dml.models import Embedder
from prism_dml.retrieval import nearest_neighbours
from prism_dml.training.ranks import ALONE, Ranks


@torch.no_grad()
def embed_all(
    network: nn.Module,
    images: ImageBatches,
    ranks: Ranks = ALONE,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """What a network (images -> vectors) makes of every sample without augmentation.

    Args:
        network: to embed with; it stays in its mode.
        images: N samples.
        ranks: processes that each embed a part; all of them get all.
        progress: called with (images done, N) after each batch.

    Returns:
        (N, D) on the device; zeros for an unreadable image.

    Raises:
        ValueError: the network has vectors that are not finite.
    """
    training, count, done = network.training, len(images.table), 0
    finite: Tensor | bool = True
    network.eval()
    embeddings = None
    for batch in images.evaluate(share=ranks.share):
        vectors = network(batch.images).float()
        # Not kept batch by batch: they would lie scattered among what the layers leave behind.
        if embeddings is None:
            embeddings = vectors.new_zeros(count, vectors.shape[1])  # (N, D)
        embeddings[batch.index] = vectors
        # Not asked of all at once, which would take twice their memory.
        finite = vectors.isfinite().all() & finite
        done += ranks.share.of * len(batch.index)
        if progress is not None:
            progress(min(done, count), count)
    network.train(training)
    width = ranks.largest(0 if embeddings is None else embeddings.shape[1])
    if embeddings is None:
        device = next(chain(network.parameters(), network.buffers())).device
        embeddings = torch.zeros(count, width, device=device)
    embeddings = ranks.total(embeddings)
    if ranks.largest(int(not finite)):
        raise ValueError(
            "what the network makes of images is not finite: its weights are broken, or training has diverged, and a "
            "lower lr may help"
        )
    return embeddings


def validate(embedder: Embedder, images: ImageBatches, ranks: Ranks = ALONE) -> float | None:
    """Precision@1 among the validation images, by given labels: the truth is never asked. None without a match."""
    embeddings, labels = embed_all(embedder, images, ranks), torch.from_numpy(images.table.labels)
    readable = (embeddings.abs().sum(dim=1) > 0).cpu()
    embeddings, labels = embeddings[readable], labels[readable]
    several = torch.bincount(labels)[labels] > 1
    if not several.any():
        return None
    _, nearest = nearest_neighbours(embeddings)  # the other metrics would rank as many as a class has images
    return float((labels[nearest[:, 0].cpu()] == labels)[several].float().mean())
