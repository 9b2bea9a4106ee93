"""Embedding whole sets in the middle of a run, and what validation says of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prism_dml.data import ImageBatches
from prism_dml.models import Embedder
from prism_dml.retrieval import retrieval_metrics


@torch.no_grad()
def embed_all(network: nn.Module, images: ImageBatches) -> Tensor:
    """What a network (images -> vectors) makes of every sample without augmentation.

    (N, D) on the device; zeros for an unreadable image.
    """
    training = network.training
    network.eval()
    rows = [(batch.index, network(batch.images)) for batch in images.evaluate()]
    network.train(training)
    index, embeddings = (torch.cat(column) for column in zip(*rows, strict=True))
    return embeddings.new_zeros(len(images.table), embeddings.shape[1]).index_copy(0, index, embeddings)


def validate(embedder: Embedder, images: ImageBatches) -> float:
    """Precision@1 among the validation images, by given labels: the truth is never asked."""
    embeddings, labels = embed_all(embedder, images), torch.from_numpy(images.table.labels)
    readable = (embeddings.abs().sum(dim=1) > 0).cpu()
    metrics = retrieval_metrics(embeddings[readable], labels[readable])
    return float(metrics["precision_at_1"])
