"""A tiny data set, and runs on it that take a fraction of a second."""

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from prism_dml.data import ImageTable, read_table
from prism_dml.data.table import BytesImages
from prism_dml.training import TrainConfig

CLASSES, EACH = 12, 8


def encoded(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


@dataclass(frozen=True)
class Untouchable:
    """Images of which only the first `readable` may be looked at."""

    images: BytesImages
    readable: int

    def __len__(self) -> int:
        return len(self.images)

    def read(self, i: int) -> bytes:
        assert i < self.readable, "an image of the test split was read"
        return self.images.read(i)


@pytest.fixture(scope="session")
def table() -> ImageTable:
    """12 classes x 8 patterns of 16 pixels for training, two labels in each class wrong; and a test split."""
    generator = np.random.default_rng(0)
    count = CLASSES * EACH
    truth = np.repeat(np.arange(CLASSES), EACH)
    given = np.where(np.arange(count) % EACH < 2, (truth + 1) % CLASSES, truth)
    patterns = generator.integers(0, 256, (CLASSES, 16, 16, 3))
    images = [encoded(patterns[k] + generator.normal(0, 20, (16, 16, 3))) for k in truth]
    source = Untouchable(BytesImages([*images, *images[:10]]), count)

    def names(labels: np.ndarray) -> list[str]:
        return [f"class {k:02}" for k in labels] + ["of the test"] * 10

    splits = ["train"] * count + ["test"] * 10
    paths = [f"{i}.png" for i in range(count + 10)]
    return ImageTable.from_names(source, paths, names(given), names(truth), splits)


@pytest.fixture
def unlabelled(table: ImageTable) -> ImageTable:
    """The same, the truth not known."""
    return replace(table, clean_labels=None)


@pytest.fixture(scope="session")
def folder(table: ImageTable, tmp_path_factory: pytest.TempPathFactory):
    """The training images as a folder of class folders."""
    root = tmp_path_factory.mktemp("data") / "images"
    for i in np.flatnonzero(table.splits == "train"):
        path = root / table.classes[table.labels[i]] / table.paths[i]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(table.images.read(i))
    assert len(read_table(root)) == CLASSES * EACH
    return root


@pytest.fixture(scope="session")
def settings() -> Callable[..., TrainConfig]:
    """Settings of a short run."""
    small: dict[str, Any] = {
        "image_size": 16, "embedding_dim": 8, "steps": 14, "classes_per_batch": 4, "samples_per_class": 3,
        "noise_rate": 0.2, "bank_size": 50, "window": 4, "validate_every": 5, "log_every": 3,
        "checkpoint_every": 4, "lr_warmup": 2, "validation": 0.2, "workers": 0, "accelerator": "cpu",
    }  # fmt: skip

    def made(method: str = "prism-mcl", **options: Any) -> TrainConfig:
        alone = {"noise_rate": "auto"} if method.startswith("refract") else {}  # it cannot be told
        return TrainConfig(method=method, **{**small, **alone, **options})

    return made


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums in one order, and no fight over the cores; for a module, so that what its own fixtures train is so too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
