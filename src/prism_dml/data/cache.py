"""All images of a table decoded once into one compact tensor."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from prism_dml.data.decode import read_image, square
from prism_dml.data.table import ImageTable, IntArray, fetch_images

logger = logging.getLogger("prism_dml")

Pixels = NDArray[np.uint8]

MEMORY_SHARE = 0.5
"""Share of the machine's memory that decoded images may take; the rest is for the model and the workers."""
NAMED_UNREADABLE = 10
"""So many unreadable images are named on the log; the others are only counted."""
CHUNK = 1024
"""Images handed to the thread pool at once: bounds what waits to be stored."""


def load_images(
    table: ImageTable,
    size: int,
    max_unreadable: float = 0.01,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[torch.Tensor, IntArray]:
    """Decode a table's images once, skipping unreadable ones, which are named on the log.

    Args:
        table: N images, N >= 1.
        size: side of the square images in pixels; the short side is resized to it, the centre cut out.
        max_unreadable: share in [0, 1] of unreadable images that is put up with.
        progress: called with (images done, N) every so often.

    Returns:
        images (M, C, size, size) uint8, C = 1 if every image is grey, else 3, and the indices (M,) in the
        table of the M readable ones.

    Raises:
        ValueError: an empty table, a bad argument, no readable image, or too many unreadable ones.
    """
    if len(table) == 0:
        raise ValueError("there are no images to load")
    if size < 1:
        raise ValueError(f"the image size must be at least 1 pixel, not {size}")
    if not 0 <= max_unreadable <= 1:
        raise ValueError(f"max_unreadable must be in [0, 1], not {max_unreadable}")

    pixels = np.empty((len(table), 1, size, size), dtype=np.uint8)
    readable: list[int] = []
    unreadable = Unreadable(len(table), max_unreadable)
    for i, image in enumerate(_decode_all(table, size)):
        if isinstance(image, ValueError):
            unreadable.add(image)
        else:
            pixels = _store(pixels, len(readable), image)
            readable.append(i)
        if (i + 1) % CHUNK == 0 or i + 1 == len(table):
            unreadable.judge()
            if progress is not None:
                progress(i + 1, len(table))
    unreadable.close()
    return torch.from_numpy(pixels[: len(readable)]), np.asarray(readable, dtype=np.int64)


def fits_in_memory(table: ImageTable, size: int, copies: int = 1) -> bool:
    """Whether a table's images, decoded to 3 x size x size, take at most half of the machine's memory, all copies."""
    return copies * len(table) * 3 * size * size <= MEMORY_SHARE * _memory_bytes()


class Unreadable:
    """Names the first unreadable images of `total`, and counts them all."""

    def __init__(self, total: int, max_share: float) -> None:
        self.total = total
        self.max_share = max_share
        self.count = 0
        self._images: set[int] = set()
        self._last: object = None
        self._told = NAMED_UNREADABLE

    def add(self, error: object, image: int | None = None) -> None:
        """One more, and why; an image whose number is given is counted once, however often it comes."""
        if image in self._images:
            return
        if image is not None:
            self._images.add(image)
        self.count += 1
        self._last = error
        if self.count <= NAMED_UNREADABLE:
            logger.warning("skipped %s", error)

    def judge(self) -> None:
        """ValueError if they are all, or more than the share `max_share` of all."""
        if self.count == self.total:
            raise ValueError(f"none of the {self.total} images is readable; the last one: {self._last}")
        if self.count > self.max_share * self.total:
            raise ValueError(
                f"{self.count} of {self.total} images are unreadable, more than the share of {self.max_share:g} that "
                f"is put up with (a higher max_unreadable puts up with more); the last one: {self._last}"
            )

    def close(self) -> None:
        """Judge, then say how many there are, if not all were named."""
        self.judge()
        if self.count > self._told:
            logger.warning("skipped %d unreadable images in all", self.count)
            self._told = self.count


def _decode_all(table: ImageTable, size: int) -> Iterator[Pixels | ValueError]:
    """Each image as (size, size, 3), or why it could not be read, in order."""

    def decode(i: int) -> Pixels | ValueError:
        try:
            return np.asarray(square(read_image(table, i), size))
        except ValueError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes and resizes without holding the GIL
        for start in range(0, len(table), CHUNK):
            stop = min(start + CHUNK, len(table))
            fetch_images(table.images, np.arange(start, stop))
            yield from pool.map(decode, range(start, stop))


def _store(pixels: Pixels, row: int, image: Pixels) -> Pixels:
    """Put an image (size, size, 3) in a row, making room for colour at the first coloured image."""
    if pixels.shape[1] == 1:
        grey = image[..., 0]
        if (image == grey[..., None]).all():
            pixels[row, 0] = grey
            return pixels
        coloured = np.empty((pixels.shape[0], 3, *pixels.shape[2:]), dtype=np.uint8)
        coloured[:row] = pixels[:row]
        pixels = coloured
    pixels[row] = image.transpose(2, 0, 1)
    return pixels


def _memory_bytes() -> int:
    """Memory of this machine, or of the container it runs in; 8 GiB where the system does not say."""
    limits = []
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    container = Path("/sys/fs/cgroup/memory.max")
    if container.is_file() and (limit := container.read_text().strip()).isdecimal():
        limits.append(int(limit))
    return min(limits, default=8 * 2**30)
