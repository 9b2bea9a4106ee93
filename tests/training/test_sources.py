import hashlib
import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prism_dml.data import ImageTable
from prism_dml.data.names import Names
from prism_dml.data.table import BytesImages
from prism_dml.training import sources
from prism_dml.training.sources import cut_validation, own_validation, training_fingerprint


def table_of(sizes: list[int]) -> ImageTable:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    names = [f"{i}" for i in range(len(labels))]
    classes = [f"class {k:03}" for k in range(len(sizes))]
    return ImageTable(BytesImages([b""] * len(labels)), names, labels, classes, labels.copy())


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=2, max_size=30).filter(lambda sizes: np.count_nonzero(sizes) >= 2),
    st.sampled_from([0.0, 0.01, 0.1, 0.25, 0.5, 0.9, 0.99]),
    st.integers(0, 5),
)
def test_whole_classes_are_set_aside(sizes: list[int], share: float, seed: int) -> None:
    table = table_of(sizes)
    train, validation = cut_validation(table, share, seed)
    present = np.count_nonzero(sizes)
    number = min(round(share * present), present - 2)
    assert (train.class_counts > 0).all(), "labels are compact"
    if validation is None:
        assert sorted(train.paths) == sorted(table.paths) and train.num_classes == present
    else:
        assert validation.num_classes == number >= 2, "of one class Precision@1 is 1 whatever the network"
        assert (validation.class_counts > 0).all() and validation.class_counts.max() >= 2
        assert not set(train.classes) & set(validation.classes)
        assert sorted([*train.paths, *validation.paths]) == sorted(table.paths)
        assert train.num_classes == present - number >= 2
    for part in filter(None, (train, validation)):
        names = dict(zip(table.paths, (table.classes[k] for k in table.labels), strict=True))
        assert [part.classes[k] for k in part.labels] == [names[path] for path in part.paths]
    again = cut_validation(table, share, seed)
    assert again[0].paths == train.paths
    if number < 2:
        assert validation is None
    elif min(size for size in sizes if size) >= 2:
        assert validation is not None


def test_the_choice_depends_on_the_seed() -> None:
    chosen = {tuple(cut_validation(table_of([3] * 20), 0.1, seed)[1].classes) for seed in range(10)}
    assert len(chosen) > 5


def test_one_class_is_too_few() -> None:
    with pytest.raises(ValueError, match="2 classes or more"):
        cut_validation(table_of([5]), 0.1, 0)


@pytest.mark.parametrize("name", ["validation", "valid", "val"])
def test_a_split_for_validation_is_used_as_it_is(name: str) -> None:
    table = table_of([3, 4, 5])
    splits = np.where(table.labels >= 1, name, "train")
    found = own_validation(replace(table, splits=splits))
    assert found is not None and found.classes == ["class 001", "class 002"] and len(found) == 9
    assert own_validation(table) is None
    assert own_validation(replace(table, splits=np.where(table.labels == 1, "test", "train"))) is None


def test_a_split_for_validation_without_a_pair_is_refused() -> None:
    table = table_of([1, 1, 5])
    with pytest.raises(ValueError, match="the split 'val' has no two images of a class"):
        own_validation(replace(table, splits=np.where(table.labels <= 1, "val", "train")))


def test_a_split_for_validation_of_one_class_is_refused() -> None:
    table = table_of([3, 4, 5])
    with pytest.raises(ValueError, match="the split 'val' has no two classes"):
        own_validation(replace(table, splits=np.where(table.labels == 1, "val", "train")))


ODD = [
    "é/ü.png",
    "日本/☃.png",
    'a "quoted".png',
    "back\\slash",
    "two\nlines",
    "",
    "a, b], [c",
    "😀",
    "\x00\x7f",
    "z.png",
]


@pytest.mark.parametrize("block", [1, 2, 3, 5, 10, 65_536])
@pytest.mark.parametrize("kind", [list, Names])
@pytest.mark.parametrize("splits", [None, ["train"] * 7 + ["test"] * 3])
def test_the_fingerprint_is_that_of_all_as_json(block, kind, splits, monkeypatch) -> None:
    """As it always was, or no checkpoint of before could be gone on with."""
    paths = ODD if kind is list else Names(pa.array(ODD))
    if kind is list:
        paths = [*ODD[:-1], "no text \udcff"]  # as the name of a file may be
    given = [ODD[i % 3] for i in range(len(ODD))]
    table = ImageTable.from_names(BytesImages([b""] * len(ODD)), paths, given, splits=splits)
    monkeypatch.setattr(sources, "_BLOCK", block)
    train = table.split("train")
    text = json.dumps([train.classes, list(train.paths), train.labels.tolist()])
    assert training_fingerprint(table) == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_the_fingerprint_of_one_table_for_good() -> None:
    assert training_fingerprint(table_of([3, 4, 5])) == "4566ce01040ffe80"


def test_the_fingerprint_never_holds_all_rows_as_objects() -> None:
    count = 400_000
    paths = Names(pa.array(f"a folder/image {i:09}.jpg" for i in range(count)))
    table = ImageTable(
        BytesImages([b""] * count), paths, np.arange(count) % 1000, [f"{k}" for k in range(1000)]
    )
    tracemalloc.start()
    training_fingerprint(table)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * count, "a path alone is more than 70 bytes as an object, and 30 as text"
