"""A tiny data set, and a protocol on it."""

import numpy as np
import pytest
import yaml
from PIL import Image


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    """A folder with images/: train/ with 6 classes x 6 and test/ with 4 others x 4."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for split, names, count in [("train", "abcdef", 6), ("test", "wxyz", 4)]:
        for name in names:
            colour = generator.integers(0, 200, 3)
            (root / "images" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = colour + generator.integers(0, 55, (16, 18, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / split / name / f"{i}.png")
    return root


@pytest.fixture
def fields():
    """The fields of a small protocol."""
    return {
        "data": [{"name": "tiny", "path": "images"}],
        "recipe": {
            "image_size": 16, "embedding_dim": 4, "steps": 3, "classes_per_batch": 3, "samples_per_class": 2,
            "log_every": 1, "lr_warmup": 0, "validation": 0, "workers": 0,
        },
        "rows": [
            {"name": "MCL", "method": "mcl", "group": "a"},
            {"name": "PRISM", "method": "prism-mcl", "group": "b", "settings": {"noise_rate": "known"}},
            {"name": "Oracle", "method": "oracle", "tuned_as": "mcl"},
            {"name": "All clean", "method": "mcl", "labels": "clean"},
            {"name": "Raw pixels", "method": "raw-pixels"},
        ],
        "grid": [{"noise": "symmetric", "rate": 0.5, "seeds": [0, 1]}],
    }  # fmt: skip


@pytest.fixture
def protocol_of(tmp_path):
    """Fields to a protocol, by way of a file."""
    from prism_dml.benchmark import load_protocol

    def load(fields):
        file = tmp_path / "protocol.yaml"
        file.write_text(yaml.safe_dump(fields), encoding="utf-8")
        return load_protocol(str(file))

    return load
