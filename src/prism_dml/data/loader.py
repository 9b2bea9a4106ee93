"""Batches of images and labels, addressed by step: from a cache in memory, or decoded by worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from prism_dml.data.augment import Augment
from prism_dml.data.cache import Unreadable, fits_in_memory, load_images
from prism_dml.data.sampling import WHOLE, PKSampler, Share
from prism_dml.data.streaming import Step, TrainingOrder, stream
from prism_dml.data.table import ImageTable, IntArray

CacheKind = Literal["auto", "memory", "stream"]

_PIXELS_AT_ONCE = 1 << 17  # of the images that are embedded at once on a CPU

LARGEST_CACHED = 128
"""Above this size it takes long to decode all images before the first step, and much memory: "auto" streams."""


@dataclass(frozen=True)
class Batch:
    """A batch on the device: what a training step or an evaluation step looks at."""

    images: Tensor
    """(B, 3, S, S) float32, augmented and normalised; or (B, F), see `VectorBatches`."""
    labels: Tensor
    """(B,) int64 given labels."""
    index: Tensor
    """(B,) int64 sample numbers in the table of the batches."""


class ImageBatches(Protocol):
    """Images of a table in batches."""

    @property
    def table(self) -> ImageTable:
        """The table that labels and sample numbers refer to."""

    def select(self, indices: ArrayLike) -> ImageBatches:
        """The samples at `indices` (numbers or a mask) only, renumbered from 0; decoded images are shared."""

    def train(
        self, sampler: PKSampler, seed: int, start_step: int = 0, share: Share = WHOLE
    ) -> Iterator[Batch]:
        """Endless augmented batches of the sampler's epochs; batch s is a pure function of (seed, s).

        Of several processes each gets its share of every batch, and all together what one alone would get.
        """

    def evaluate(self, batch_size: int | None = None, share: Share = WHOLE) -> Iterator[Batch]:
        """Every readable image once, in the order of the table, not augmented; whole batches are shared out.

        None: so many as are embedded the fastest, see `images_at_once`.
        """


def images_at_once(size: int, device: torch.device | str) -> int:
    """How many images of so many pixels a side are embedded the fastest.

    On a CPU as many as its cache takes with what a layer makes of them: that is two to three times as fast as 256.
    """
    if torch.device(device).type != "cpu":
        return 256
    return min(max(_PIXELS_AT_ONCE // size**2, 8), 256)


@dataclass(frozen=True, eq=False)
class CachedBatches:
    """Batches from images decoded once: all randomness is the augmentation's, on the device.

    Args:
        table: N samples.
        images: (M, C, S, S) uint8 decoded images.
        rows: (N,) the row of `images` of each sample.
        augment: augmentation of training batches; its mean and std are used in evaluation too.
        device: where batches go.
    """

    table: ImageTable
    images: Tensor
    rows: Tensor
    augment: Augment
    device: torch.device

    def select(self, indices: ArrayLike) -> CachedBatches:
        """The samples at `indices` (numbers or a mask) only, renumbered from 0; decoded images are shared."""
        chosen = np.arange(len(self.table))[np.asarray(indices)]
        return replace(self, table=self.table.select(chosen), rows=self.rows[torch.from_numpy(chosen)])

    def train(
        self, sampler: PKSampler, seed: int, start_step: int = 0, share: Share = WHOLE
    ) -> Iterator[Batch]:
        """Endless augmented batches, or a share of each; see `ImageBatches.train`."""
        for step, indices in TrainingOrder(sampler, start_step):
            places = torch.tensor(share.places(len(indices)), dtype=torch.int64)
            batch = self._batch(indices[places.numpy()])
            images = self.augment(batch.images, _generator(seed, step), places, len(indices))
            yield replace(batch, images=images)

    def evaluate(self, batch_size: int | None = None, share: Share = WHOLE) -> Iterator[Batch]:
        """Every image once, in the order of the table, not augmented; see `ImageBatches.evaluate`."""
        batch_size = images_at_once(self.images.shape[-1], self.device) if batch_size is None else batch_size
        look = replace(self.augment, kind="none")
        for indices in slices(len(self.table), batch_size)[share.rank :: share.of]:
            batch = self._batch(indices)
            yield replace(batch, images=look(batch.images))

    def _batch(self, indices: IntArray) -> Batch:
        """Images as they were decoded, (B, C, S, S) uint8."""
        index = torch.from_numpy(indices)
        images = self.images[self.rows[index]].to(self.device)
        labels = torch.from_numpy(self.table.labels[indices])
        return Batch(images, labels.to(self.device), index.to(self.device))


@dataclass(frozen=True, eq=False)
class StreamingBatches:
    """Batches decoded anew each time, by worker processes, and augmented on the device as those in memory are.

    An unreadable image is named on the log; in training another sample of its class stands in for it, in
    evaluation it is left out.

    Args:
        table: N samples.
        size: side S of the square images in pixels.
        augment: augmentation of training batches; its mean and std are used in evaluation too.
        resize_size: short side before the centre is cut out, at least S.
        workers: number of processes; 0 decodes in this one. It changes nothing in the batches.
        max_unreadable: share in [0, 1] of the table's images that may be unreadable.
        device: where batches go.
        unreadable: those met so far; each is named and counted once, however often it comes. None: none so far.

    Raises:
        ValueError: a bad argument; while iterating, when the unreadable images pass `max_unreadable`.
    """

    table: ImageTable
    size: int
    augment: Augment
    resize_size: int
    workers: int = 0
    max_unreadable: float = 0.01
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    unreadable: Unreadable | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"the image size must be at least 1 pixel, not {self.size}")
        if self.resize_size < self.size:
            raise ValueError(f"resize_size must be at least the size {self.size}, not {self.resize_size}")
        if self.workers < 0:
            raise ValueError(f"workers must not be negative, not {self.workers}")
        if not 0 <= self.max_unreadable <= 1:
            raise ValueError(f"max_unreadable must be in [0, 1], not {self.max_unreadable}")
        if self.unreadable is None:
            object.__setattr__(self, "unreadable", Unreadable(len(self.table), self.max_unreadable))

    def select(self, indices: ArrayLike) -> StreamingBatches:
        """The samples at `indices` (numbers or a mask) only, renumbered from 0; `max_unreadable` is still of all."""
        return replace(self, table=self.table.select(indices))

    def train(
        self, sampler: PKSampler, seed: int, start_step: int = 0, share: Share = WHOLE
    ) -> Iterator[Batch]:
        """Endless augmented batches, or a share of each; see `ImageBatches.train`."""
        return self._batches(TrainingOrder(sampler, start_step), seed, share)

    def evaluate(self, batch_size: int | None = None, share: Share = WHOLE) -> Iterator[Batch]:
        """Every readable image once, in the order of the table, not augmented; see `ImageBatches.evaluate`."""
        batch_size = images_at_once(self.size, self.device) if batch_size is None else batch_size
        return self.in_order(slices(len(self.table), batch_size)[share.rank :: share.of])

    def in_order(self, batches: Sequence[IntArray]) -> Iterator[Batch]:
        """The readable images of batches that are given by their sample numbers, not augmented; none is empty."""
        return self._batches(list(enumerate(batches)), None, WHOLE)

    def _batches(self, order: Iterable[Step], seed: int | None, share: Share) -> Iterator[Batch]:
        augment = self.augment if seed is not None else replace(self.augment, kind="none")
        assert self.unreadable is not None
        decoded = stream(
            self.table,
            order,
            self.size,
            self.resize_size,
            seed,
            crop=augment.kind == "crop",
            workers=self.workers,
            unreadable=self.unreadable,
            pin_memory=self.device.type == "cuda",
            share=share,
        )
        for step, images, index, places, total in decoded:
            labels = torch.from_numpy(self.table.labels[index.numpy()])
            images = images.to(self.device, non_blocking=True)
            images = augment(images, _generator(seed or 0, step), places, total)
            yield Batch(images, labels.to(self.device), index.to(self.device))


def open_images(
    table: ImageTable,
    size: int,
    augment: Augment,
    workers: int = 0,
    max_unreadable: float = 0.01,
    cache: CacheKind = "auto",
    device: torch.device | str = "cpu",
    resize_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    copies: int = 1,
) -> ImageBatches:
    """Batches of a table's images, which are decoded once into memory or streamed from their source.

    Args:
        table: N samples; when cached, the result's `table` has the readable ones only.
        size: side of the square images in pixels.
        augment: augmentation of training batches, mean and std of all.
        workers: processes that decode streamed images.
        max_unreadable: share in [0, 1] of unreadable images that is put up with.
        cache: "memory", "stream", or "auto": memory up to 128 pixels if half of the machine's memory suffices. "crop",
            which is cut out of whole images, is for streamed ones only.
        device: where batches go.
        resize_size: short side before the centre is cut out in evaluation, at least S; None: S. More than S (256 for
            224 pixels is usual) is only for streamed images.
        progress: called with (images done, N) while images are decoded into memory.
        copies: processes of this machine that each hold as much.

    Raises:
        ValueError: an empty table, a bad argument, or too many unreadable images.
    """
    if cache not in ("auto", "memory", "stream"):
        raise ValueError(f"unknown cache {cache!r}, choose one of auto, memory, stream")
    device = torch.device(device)
    resize_size = size if resize_size is None else resize_size
    if cache == "auto":
        small = size <= LARGEST_CACHED and resize_size == size and augment.kind != "crop"
        cache = "memory" if small and fits_in_memory(table, size, copies) else "stream"
    if cache == "memory" and resize_size != size:
        raise ValueError(
            f"images in memory have resize_size {size}, their size; {resize_size} needs a stream"
        )
    if cache == "memory" and augment.kind == "crop":
        raise ValueError("crops of whole images need a stream: there are only squares in memory")
    if cache == "memory":
        images, readable = load_images(table, size, max_unreadable, progress)
        table = table if len(readable) == len(table) else table.select(readable)
        return CachedBatches(table, images, torch.arange(len(images)), augment, device)
    if len(table) == 0:
        raise ValueError("there are no images to load")
    return StreamingBatches(table, size, augment, resize_size, workers, max_unreadable, device)


def _generator(seed: int, step: int) -> torch.Generator:
    """The generator of a step's augmentation."""
    state = np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def slices(count: int, batch_size: int) -> list[IntArray]:
    """0 ... count - 1 in pieces of batch_size."""
    if batch_size < 1:
        raise ValueError(f"the batch size must be at least 1, not {batch_size}")
    return [np.arange(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
