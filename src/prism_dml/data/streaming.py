"""Images decoded by worker processes, in an order given by step."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from prism_dml.data.cache import Unreadable
from prism_dml.data.decode import read_image, square
from prism_dml.data.remote import StoreError
from prism_dml.data.sampling import WHOLE, PKSampler, Share
from prism_dml.data.table import ImageTable, IntArray, fetch_images, source_rows

STAND_INS = 8
"""So many samples of the class are tried in an unreadable image's place before the place is left empty."""

Step = tuple[int, IntArray]
"""A step's number and the sample numbers of its batch."""


class Decoded(NamedTuple):
    """What is readable of a batch, or of one process's share of it."""

    step: int
    images: Tensor
    """(B, 3, S, S) uint8."""
    samples: Tensor
    """(B,) int64 sample numbers."""
    places: Tensor
    """(B,) int64 places in the whole batch."""
    total: int
    """Size of the whole batch."""


@dataclass(frozen=True)
class TrainingOrder:
    """The steps of a run from `start_step` on, without end."""

    sampler: PKSampler
    start_step: int = 0

    def __iter__(self) -> Iterator[Step]:
        step = self.start_step
        while True:
            epoch, first = divmod(step, self.sampler.num_batches)
            for indices in self.sampler.epoch(epoch)[first:]:
                yield step, indices
                step += 1


def stream(
    table: ImageTable,
    order: Iterable[Step],
    size: int,
    resize_size: int,
    seed: int | None,
    crop: bool,
    workers: int,
    unreadable: Unreadable,
    pin_memory: bool = False,
    share: Share = WHOLE,
) -> Iterator[Decoded]:
    """Decode the batches of `order`, unreadable images named on the log and left out.

    Args:
        table: N samples.
        order: steps and the (B,) sample numbers of their batches.
        size: side S of the images.
        resize_size: short side before the centre is cut out, at least S.
        seed: of crops and of the stand-ins for unreadable images; None: evaluation, which has neither.
        crop: cut random crops, half of them flipped, out of the whole images, not their centre.
        workers: number of processes; 0: this one.
        unreadable: what is known of unreadable images already, and will be from here.
        pin_memory: put batches into page-locked memory.
        share: the part of each batch to decode. Of several, even an empty one is yielded: the others wait for it.

    Yields:
        what is readable of each batch.

    Raises:
        ValueError: too many images are unreadable, or all of them.
        StoreError: the store of the images failed.
    """
    decoder = _Decoder(table, size, resize_size, seed, crop, share)
    (_, numbers), missing = source_rows(table.images), set[int]()
    # One item is one whole batch, so its content cannot depend on which worker makes it.
    loader = DataLoader(
        decoder,
        batch_size=None,
        sampler=order,
        num_workers=workers,
        pin_memory=pin_memory,
        # Otherwise it draws seeds for its workers, which nobody uses, from the global generator.
        generator=torch.Generator(),
        worker_init_fn=_outlive_one_sigterm,
    )
    for item in loader:
        if isinstance(item, StoreError):
            raise item
        batch, failures = item
        for i, reason in failures.items():
            unreadable.add(reason, int(numbers[i]))
            missing.add(i)
        unreadable.judge()
        if len(missing) == len(table):  # of a selection: there would never be a batch
            raise ValueError(f"none of the {len(table)} images is readable")
        if len(batch.samples) or share.of > 1:
            yield batch
    unreadable.close()


def _outlive_one_sigterm(_: int) -> None:
    """What a whole process group is told reaches a worker, too; it goes on until the main process has stopped."""
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


class _Decoder(Dataset[tuple[Decoded, dict[int, str]] | StoreError]):
    """What a worker does: a step to its images and the errors of unreadable samples; or why the store failed."""

    def __init__(
        self, table: ImageTable, size: int, resize_size: int, seed: int | None, crop: bool, share: Share
    ) -> None:
        assert seed is not None or not crop
        self.table = table
        self.size = size
        self.resize_size = resize_size
        self.seed = seed
        self.share = share
        flip = v2.RandomHorizontalFlip()
        self.crop = v2.Compose([v2.RandomResizedCrop(size, scale=(0.2, 1.0)), flip]) if crop else None

    def __getitem__(self, item: Step) -> tuple[Decoded, dict[int, str]] | StoreError:
        try:
            return self._decode(*item)
        except StoreError as error:  # returned: torch would add the worker's traceback to its message
            return error

    def _decode(self, step: int, indices: IntArray) -> tuple[Decoded, dict[int, str]]:
        failures: dict[int, str] = {}
        images, index, places = [], [], []
        own = self.share.places(len(indices))
        fetch_images(self.table.images, indices[own.start : own.stop])
        for place in own:
            rng = np.random.default_rng((self.seed or 0, step, place))
            for i in self._candidates(int(indices[place]), rng):
                try:
                    image = read_image(self.table, i)
                except ValueError as error:
                    failures[i] = str(error)
                    continue
                images.append(self._transform(image, rng))
                index.append(i)
                places.append(place)
                break
        batch = torch.stack(images) if images else torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)
        numbers, at = (torch.tensor(column, dtype=torch.int64) for column in (index, places))
        return Decoded(step, batch, numbers, at, len(indices)), failures

    def _candidates(self, wanted: int, rng: np.random.Generator) -> Iterator[int]:
        """The sample that is wanted, then, in training, others of its class."""
        yield wanted
        if self.seed is not None:
            mates = np.flatnonzero(self.table.labels == self.table.labels[wanted])
            yield from rng.permutation(mates[mates != wanted])[:STAND_INS].tolist()

    def _transform(self, image: Image, rng: np.random.Generator) -> Tensor:
        """An RGB image to (3, S, S) uint8."""
        pixels: Tensor
        if self.crop is None:
            pixels = v2.functional.pil_to_tensor(square(image, self.resize_size))
            pixels = v2.functional.center_crop(pixels, [self.size, self.size])
            return pixels
        # torchvision draws from the global generator, which is lent to it and left as it was.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(rng.integers(2**63)))
            pixels = v2.functional.pil_to_tensor(self.crop(image))
            return pixels
