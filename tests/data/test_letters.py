import io
import time

import numpy as np
import pytest
import torch
from PIL import Image

from prism_dml.data import letters as module
from prism_dml.data.letters import characters_of_shapes, letters_table, typefaces
from prism_dml.data.table import ImageTable


def pixels(table: ImageTable) -> np.ndarray:
    return np.stack([np.asarray(Image.open(io.BytesIO(table.images.read(i)))) for i in range(len(table))])


@pytest.fixture(scope="module")
def tables() -> tuple[ImageTable, ImageTable]:
    return letters_table(size=32, seed=0)


def test_every_character_in_every_typeface_split_by_character(tables: tuple[ImageTable, ImageTable]) -> None:
    train, test = tables
    assert len(typefaces()) == 16
    for table in tables:
        assert (table.class_counts == 16).all() and len(set(table.paths)) == len(table)
        assert table.classes == sorted(table.classes)
        assert [p.split("/")[0] for p in table.paths] == [table.classes[k] for k in table.labels]
        scripts = {module._script(c) for c in table.classes}
        assert scripts == {"Digit", "Latin", "Greek", "Cyrillic"}, "scripts are mixed"
    assert sorted(train.classes + test.classes) == sorted(characters_of_shapes())
    assert not set(train.classes) & set(test.classes)
    assert abs(train.num_classes / (train.num_classes + test.num_classes) - 2 / 3) < 0.02
    assert train.num_classes + test.num_classes > 90


def test_images_are_grey_centred_and_whole(tables: tuple[ImageTable, ImageTable]) -> None:
    for table in tables:
        images = pixels(table)
        assert images.shape == (len(table), 32, 32) and images.dtype == np.uint8
        ink = 255 - images.astype(float)
        assert (ink.max((1, 2)) > 130).all(), "no image is empty"
        border = np.concatenate([ink[:, 0], ink[:, -1], ink[:, :, 0], ink[:, :, -1]], 1)
        assert np.quantile(border.max(1), 0.99) < 60, "nearly no letter is cut"
        centre = (ink.sum(1) * np.arange(32)).sum(1) / ink.sum((1, 2))
        assert abs(centre - 15.5).max() < 8 and abs(centre.mean() - 15.5) < 0.5


def test_size() -> None:
    data = module._draw("Ж", typefaces()[0], 20, (0, 1, 2))
    assert Image.open(io.BytesIO(data)).size == (20, 20)


def test_look_alikes_are_one_class() -> None:
    shapes = set(characters_of_shapes())
    for alike in ("OО0Ο", "AАΑ", "TТΤт", "cCсС", "xXхХΧ", "sSѕ", "nпи", "mт", "lI1", "лЛ"):
        assert len(shapes & set(alike)) <= (2 if alike == "nпи" else 1), alike
    assert shapes >= set("Aa8ΩЖЯΔ")
    assert not shapes & set("éÄжΆЙ"), "no accents, no second case of the same shape"


def test_raw_pixels_are_a_meaningful_floor(tables: tuple[ImageTable, ImageTable]) -> None:
    images = torch.from_numpy(pixels(tables[1])).float().flatten(1)
    unit = torch.nn.functional.normalize(images)
    similarity = (unit @ unit.T).fill_diagonal_(-1)
    labels = torch.from_numpy(tables[1].labels)
    precision = (labels[similarity.argmax(1)] == labels).float().mean().item()
    assert 0.4 < precision < 0.75


def test_deterministic_in_the_seed(tables: tuple[ImageTable, ImageTable]) -> None:
    start = time.perf_counter()
    again = letters_table(size=32, seed=0)
    assert time.perf_counter() - start < 10
    for table, same in zip(tables, again, strict=True):
        assert table.paths == same.paths and table.images == same.images
    other = letters_table(size=32, seed=1)
    assert other[1].classes != tables[1].classes
    shared = next(c for c in other[1].classes if c in tables[1].classes)
    first, second = (
        t.images.read(t.classes.index(shared) * 16) for t in (tables[1], letters_table(32, 1)[1])
    )
    assert first != second, "another seed, another size and rotation"


def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="at least 8 pixels"):
        letters_table(size=4)
    with pytest.raises(ValueError, match="seed"):
        letters_table(seed=-1)
    monkeypatch.setattr(module, "FAMILIES", ("NoSuchFace",))
    with pytest.raises(ValueError, match="typefaces are missing: 0 of 16"):
        typefaces.__wrapped__()
