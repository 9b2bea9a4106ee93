"""From a data set to the batches of a run: the training classes, and those set aside for validation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from prism_dml.data import (
    Augment,
    Batch,
    ImageBatches,
    ImageTable,
    PKSampler,
    StreamingBatches,
    VectorBatches,
    open_images,
    open_vectors,
    storage_blocks,
    vector_batches,
)
from prism_dml.data.table import IntArray
from prism_dml.models import Preprocess
from prism_dml.training.config import TrainConfig
from prism_dml.training.measure import embed_all
from prism_dml.training.ranks import ALONE, Ranks

VALIDATION = ("validation", "valid", "val")
"""Names of a split for validation, as people write them."""

_BLOCK = 65_536
"""Values that are Python objects at a time while all are digested."""


def training_fingerprint(data: ImageTable) -> str:
    """What tells the training split of one data set from another's, other labels included; not the pixels."""
    return fingerprint(data.split("train"))


def fingerprint(table: ImageTable) -> str:
    """What tells some samples from others: the digest of the JSON of classes, paths and labels.

    That is never held as a whole.
    """
    digest = hashlib.sha256(b"[")
    for number, column in enumerate((table.classes, table.paths, map(int, table.labels))):
        digest.update(b", [" if number else b"[")
        values, between = iter(column), ""
        while block := list(islice(values, _BLOCK)):
            digest.update((between + json.dumps(block)[1:-1]).encode())
            between = ", "
        digest.update(b"]")
    digest.update(b"]")
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Sources:
    """The images of a run."""

    train: ImageBatches
    """What is learned from; labels are compact."""
    validation: ImageBatches | None
    """Images set aside to choose the best checkpoint, or None."""
    blocks: IntArray | None = None
    """(N,) where each image of `train` is stored, if they are more than stays in memory; see `PKSampler`."""

    def batches(
        self, sampler: PKSampler, weights: Tensor | None, seed: int, step: int, ranks: Ranks
    ) -> Iterator[Batch]:
        """The batches to learn from, from a step on, without end; see `Ranks.batches`.

        Args:
            sampler: of `train`.
            weights: (N,) how often samples are drawn, see `PKSampler.weighted`, or None.
            seed: of the augmentation.
            step: the first one's number.
            ranks: processes that share each batch.
        """
        drawn = sampler if weights is None else sampler.weighted(weights.cpu().numpy())
        shares = self.train.train(drawn, seed, step, ranks.share)
        size = sampler.classes_per_batch * sampler.samples_per_class
        return ranks.batches(shares, torch.from_numpy(self.train.table.labels), size)


def cut_validation(table: ImageTable, share: float, seed: int) -> tuple[ImageTable, ImageTable | None]:
    """Set whole classes aside, by given label.

    Args:
        table: N samples.
        share: share of the classes in [0, 1), rounded; two always stay, and one alone is not set aside: among images
            of one class Precision@1 is 1, whatever the network.
        seed: of the choice.

    Returns:
        What stays and what is set aside, each compact; None instead of images none of which has a match.
    """
    table = table.compact()
    table.require_classes(2)
    number = min(round(share * table.num_classes), table.num_classes - 2)
    chosen = np.random.default_rng((seed, 1)).permutation(table.num_classes)[:number]
    aside = np.isin(table.labels, chosen)
    validation = table.select(aside).compact()
    if number < 2 or validation.class_counts.max() < 2:
        return table, None
    return table.select(~aside).compact(), validation


def own_validation(table: ImageTable) -> ImageTable | None:
    """The split of a data set that is meant for validation, compact, or None if it has none; see `VALIDATION`.

    Raises:
        ValueError: the split has less than two classes, or no two images of a class.
    """
    name = None if table.splits is None else next((n for n in VALIDATION if (table.splits == n).any()), None)
    if name is None:
        return None
    part = table.split(name)
    if part.num_classes < 2:
        lacking = "two classes to tell apart"
    elif part.class_counts.max() < 2:
        lacking = "two images of a class to find by each other"
    else:
        return part
    raise ValueError(f"the split '{name}' has no {lacking}; validation 0 does without")


def open_sources(
    table: ImageTable,
    config: TrainConfig,
    look: Preprocess,
    clean_only: bool,
    device: object,
    progress: Callable[[int, int], None] | None = None,
    copies: int = 1,
) -> Sources:
    """Split a training table and open its images.

    Validation is on the data's own split for it; without one, on whole classes of the split "train".

    Args:
        table: all samples.
        config: settings of the run.
        look: the model's preprocessing.
        clean_only: learn from the truly clean samples only (the oracle).
        device: where batches go.
        progress: called with (images done, N) while training images are decoded.
        copies: processes of this machine that do the same.

    Raises:
        ValueError: fewer than two classes, too many unreadable images, or unknown truth where it is needed.
    """
    train, validation = table.split("train"), own_validation(table) if config.validation > 0 else None
    if validation is None:
        train, validation = cut_validation(train, config.validation, config.seed)
    train.require_classes(2)
    if clean_only:
        if train.is_noisy is None:
            raise ValueError(f'method "{config.method}" needs the true labels, which the data does not have')
        train = train.select(~train.is_noisy).compact()
        train.require_classes(2)

    def opened(part: ImageTable, show: Callable[[int, int], None] | None) -> ImageBatches:
        known = open_vectors(part, config.max_unreadable, str(device)) if config.freeze_backbone else None
        if known is not None:
            return known
        return open_images(
            part,
            look.image_size,
            Augment(config.augment, look.mean, look.std),
            workers=config.workers,
            max_unreadable=config.max_unreadable,
            cache=config.cache,
            device=str(device),
            resize_size=look.resize_size,
            progress=show,
            copies=copies,
        )

    learned = opened(train, progress)
    blocks = storage_blocks(train.images) if isinstance(learned, StreamingBatches) else None
    return Sources(learned, None if validation is None else opened(validation, None), blocks)


def look_once(
    sources: Sources,
    backbone: nn.Module,
    max_unreadable: float,
    ranks: Ranks = ALONE,
    progress: Callable[[int, int], None] | None = None,
) -> Sources:
    """What a frozen backbone makes of the images, in the place of the images. O(N F) memory.

    Args:
        sources: the images of a run, or vectors already.
        backbone: images -> (B, F); batches go to its device.
        max_unreadable: share in [0, 1] of unreadable images that is put up with.
        ranks: processes that each embed a part.
        progress: called with (images done, N) of each part.

    Raises:
        ValueError: more are unreadable.
    """
    device = next(backbone.parameters()).device

    def seen(images: ImageBatches) -> ImageBatches:
        if isinstance(images, VectorBatches):
            return images
        vectors = embed_all(backbone, images, ranks, progress).cpu()
        return vector_batches(images.table, vectors, max_unreadable, device)

    return Sources(seen(sources.train), None if sources.validation is None else seen(sources.validation))
