"""What frozen backbones make of a data set's images, kept while a comparison is at work: many runs share it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from prism_dml.benchmark.machine import num_cores
from prism_dml.data import Augment, ImageTable, open_images, read_table, with_vectors
from prism_dml.files import replacing
from prism_dml.models import Embedder
from prism_dml.training import TrainConfig
from prism_dml.training.measure import embed_all
from prism_dml.training.precision import precision_on

VECTORS = "vectors"
"""The folder they are in."""


def embedded_once(
    table: ImageTable, data: Path, config: TrainConfig, accelerator: str, folder: Path
) -> ImageTable:
    """The same table, whose images know what the run's frozen backbone makes of them.

    The first run that asks embeds all images of the data set; the others wait for it, so that it takes all cores.

    Args:
        table: some samples of the data set, under any labels.
        data: where the data set is.
        config: of the run.
        accelerator: cpu or cuda.
        folder: of the vectors, (N, F) float32 for each data set and backbone.

    Raises:
        ValueError: the backbone cannot be built, or an image cannot be had.
    """
    settings = ("backbone", "pretrained", "weights", "image_size")
    state = data.stat()  # what a comparison that was stopped has left may be of a file that is another by now
    known = [str(data.resolve()), state.st_size, state.st_mtime_ns]
    known += [getattr(config, name) for name in settings]
    known.append(precision_on(accelerator, config.precision))
    file = folder / f"{hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]}.npy"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):
        if not file.is_file():
            threads = torch.get_num_threads()
            torch.set_num_threads(num_cores())
            vectors = _look(read_table(data), config, accelerator)
            torch.set_num_threads(threads)
            with replacing(file) as temporary, temporary.open("wb") as opened:
                np.save(opened, vectors)
    return with_vectors(table, np.load(file, mmap_mode="r"))


def _look(table: ImageTable, config: TrainConfig, accelerator: str) -> np.ndarray:
    """(N, F), zeros where an image cannot be read."""
    embedder = Embedder(
        config.backbone, image_size=config.image_size, pretrained=config.pretrained, weights=config.weights
    ).to(accelerator)
    look = embedder.transform
    images = open_images(
        table,
        look.image_size,
        Augment("none", look.mean, look.std),
        workers=config.workers,
        max_unreadable=1.0,  # the runs decide
        cache="stream",
        device=accelerator,
        resize_size=look.resize_size,
    )
    with torch.autocast(
        accelerator, torch.bfloat16, enabled=precision_on(accelerator, config.precision) == "bf16-mixed"
    ):
        return embed_all(embedder.backbone, images).cpu().numpy()
