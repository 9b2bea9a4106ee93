"""Batches of vectors that stand for images: what a backbone that is not trained makes of them, once and for all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from prism_dml.data.loader import Batch, slices
from prism_dml.data.sampling import WHOLE, PKSampler, Share
from prism_dml.data.streaming import TrainingOrder
from prism_dml.data.table import ImageSource, ImageTable, SelectedImages


@dataclass(frozen=True, eq=False)
class VectorBatches:
    """Vectors of a table's images in batches, in the place of the images; see `ImageBatches`.

    Args:
        table: N samples.
        vectors: (N, F) float32, on the CPU.
        device: where batches go.
    """

    table: ImageTable
    vectors: Tensor
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def select(self, indices: ArrayLike) -> VectorBatches:
        """The samples at `indices` (numbers or a mask) only, renumbered from 0."""
        chosen = np.arange(len(self.table))[np.asarray(indices)]
        return replace(self, table=self.table.select(chosen), vectors=self.vectors[torch.from_numpy(chosen)])

    def train(
        self, sampler: PKSampler, seed: int, start_step: int = 0, share: Share = WHOLE
    ) -> Iterator[Batch]:
        """Endless batches, or a share of each; nothing is random but the sampler's order."""
        for _, indices in TrainingOrder(sampler, start_step):
            yield self._batch(indices[list(share.places(len(indices)))])

    def evaluate(self, batch_size: int | None = None, share: Share = WHOLE) -> Iterator[Batch]:
        """Every vector once, in the order of the table; whole batches are shared out."""
        for indices in slices(len(self.table), 1024 if batch_size is None else batch_size)[
            share.rank :: share.of
        ]:
            yield self._batch(indices)

    def _batch(self, indices: np.ndarray) -> Batch:
        index = torch.from_numpy(indices)
        labels = torch.from_numpy(self.table.labels[indices])
        return Batch(*(column.to(self.device) for column in (self.vectors[index], labels, index)))


def vector_batches(
    table: ImageTable, vectors: Tensor, max_unreadable: float, device: torch.device | str = "cpu"
) -> VectorBatches:
    """Batches of a table's vectors, those of unreadable images left out.

    Args:
        table: N samples.
        vectors: (N, F) float32, zeros where an image could not be read.
        max_unreadable: share in [0, 1] of these that is put up with.
        device: where batches go.

    Raises:
        ValueError: they are more.
    """
    readable = (vectors != 0).any(dim=1)
    missing = len(table) - int(readable.sum())
    if missing == len(table) or missing > max_unreadable * len(table):
        raise ValueError(
            f"{missing} of {len(table)} images are unreadable, more than the share of {max_unreadable:g} that is put "
            "up with (a higher max_unreadable puts up with more)"
        )
    if missing:
        table, vectors = table.select(readable.numpy()), vectors[readable]
    return VectorBatches(table, vectors, torch.device(device))


@dataclass(frozen=True, eq=False)
class ImagesWithVectors:
    """Images of which the vectors (N, F) are known."""

    source: ImageSource
    vectors: np.ndarray

    def __len__(self) -> int:
        return len(self.source)

    def read(self, i: int) -> bytes:
        """The encoded bytes of image i."""
        return self.source.read(i)


def with_vectors(table: ImageTable, vectors: np.ndarray) -> ImageTable:
    """The same table, whose images know their vectors; `vectors` are of all images of its source, in their order."""
    images = table.images
    if isinstance(images, SelectedImages):
        known: ImageSource = SelectedImages(ImagesWithVectors(images.source, vectors), images.indices)
    else:
        known = ImagesWithVectors(images, vectors)
    return replace(table, images=known)


def open_vectors(
    table: ImageTable, max_unreadable: float, device: torch.device | str = "cpu"
) -> VectorBatches | None:
    """Batches of the vectors that a table's images know, see `vector_batches`; None if they know none."""
    images, rows = table.images, np.arange(len(table))
    if isinstance(images, SelectedImages):
        rows, images = images.indices, images.source
    if not isinstance(images, ImagesWithVectors):
        return None
    return vector_batches(table, torch.from_numpy(images.vectors[rows]), max_unreadable, device)
