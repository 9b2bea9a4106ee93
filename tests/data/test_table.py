import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prism_dml.data.table import BytesImages, FileImages, ImageTable, SelectedImages, image_file, sort_classes


def make_table(
    labels: list[str], clean: list[str | None] | None = None, splits: list[str] | None = None
) -> ImageTable:
    images = BytesImages([f"image {i}".encode() for i in range(len(labels))])
    return ImageTable.from_names(images, [f"{i}.png" for i in range(len(labels))], labels, clean, splits)


def names(table: ImageTable) -> list[str]:
    return [table.classes[k] for k in table.labels]


def clean_names(table: ImageTable) -> list[str | None]:
    assert table.clean_labels is not None
    return [table.classes[k] if k >= 0 else None for k in table.clean_labels]


def test_classes_are_the_sorted_union_of_given_and_true_names() -> None:
    table = make_table(["pear", "apple", "pear"], ["fig", None, "pear"])
    assert table.classes == ["apple", "fig", "pear"]
    assert table.labels.tolist() == [2, 0, 2]
    assert table.clean_labels is not None and table.clean_labels.tolist() == [1, -1, 2]
    assert table.is_noisy is not None and table.is_noisy.tolist() == [True, True, False]
    assert table.class_counts.tolist() == [1, 0, 2]


def test_unknown_truth() -> None:
    assert make_table(["a", "b"]).is_noisy is None


@pytest.mark.parametrize(
    ("given_names", "ordered"),
    [
        (["10", "9", "1"], ["1", "9", "10"]),
        (["-1", "2", "-10"], ["-10", "-1", "2"]),
        (["10", "9", "x"], ["10", "9", "x"]),
        (["07", "7", "1"], ["1", "07", "7"]),
        (["10", "9", "9" * 5000], ["10", "9", "9" * 5000]),
        (["é", "z", "Ä"], ["z", "Ä", "é"]),
        ([], []),
    ],
)
def test_sort_classes(given_names: list[str], ordered: list[str]) -> None:
    assert sort_classes(given_names) == ordered


def test_select_by_numbers_and_by_mask_keeps_everything_together() -> None:
    table = make_table(["a", "b", "c", "a"], ["a", None, "b", "b"], ["train", "test", "train", "test"])
    chosen = table.select([3, 0]).select([0, 1, 0])
    assert names(chosen) == ["a", "a", "a"]
    assert clean_names(chosen) == ["b", "a", "b"]
    assert chosen.splits is not None and chosen.splits.tolist() == ["test", "train", "test"]
    assert chosen.paths == ["3.png", "0.png", "3.png"]
    assert [chosen.images.read(i) for i in range(3)] == [b"image 3", b"image 0", b"image 3"]
    assert chosen.classes == ["a", "b", "c"]
    assert isinstance(chosen.images, SelectedImages) and isinstance(chosen.images.source, BytesImages)
    assert table.select(np.array([False, True, True, False])).paths == ["1.png", "2.png"]
    assert len(table.select([])) == 0


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from([*"abcde", None])), min_size=1))
def test_compact_keeps_names_and_loses_only_absent_true_classes(rows: list[tuple[str, str | None]]) -> None:
    table = make_table([label for label, _ in rows], [clean for _, clean in rows])
    compact = table.compact()
    assert names(compact) == names(table)
    assert compact.classes == sorted(set(names(table)))
    assert clean_names(compact) == [name if name in compact.classes else None for name in clean_names(table)]
    assert table.is_noisy is not None and compact.is_noisy is not None
    assert compact.is_noisy.tolist() == table.is_noisy.tolist()
    assert (compact.class_counts > 0).all()


def test_split_has_its_own_classes() -> None:
    table = make_table(["a", "b", "c", "b"], splits=["train", "test", "train", "test"])
    assert table.split("train").classes == ["a", "c"]
    assert table.split("test").labels.tolist() == [0, 0]
    with pytest.raises(ValueError, match="no split 'val' in the data; it has: test, train"):
        table.split("val")


def test_split_of_data_without_splits_is_all_of_it() -> None:
    assert make_table(["a", "b"]).split("test").paths == ["0.png", "1.png"]


def test_members_of_a_split_that_is_there() -> None:
    table = make_table(["a", "b", "c"], splits=["train", "test", "train"])
    assert table.members("train").tolist() == [0, 2]
    with pytest.raises(ValueError, match="no split 'val' in the data; it has: test, train"):
        table.members("val")
    with pytest.raises(ValueError, match="no split 'test': the data has no splits; leave split out"):
        make_table(["a", "b"]).members("test")


def test_require_classes_counts_classes_with_samples() -> None:
    make_table(["a", "b"]).require_classes(2)
    with pytest.raises(ValueError, match="2 classes or more are needed, the data has 1"):
        make_table(["a", "a"], ["b", "a"]).require_classes()


def test_image_file_sees_through_selections() -> None:
    files = FileImages(Path("root"), ["a b.png", "/else/ü.png"])
    table = ImageTable(files, ["a b.png", "/else/ü.png"], np.array([0, 0]), ["x"])
    assert image_file(table.select([1]).select([0]).images, 0) == Path("/else/ü.png")
    assert image_file(files, 0) == Path("root/a b.png")
    assert image_file(BytesImages([b""]), 0) is None


def test_pickled_table_of_files_names_each_path_once() -> None:
    paths = [f"class/{i:040d}.jpg" for i in range(1000)]
    table = ImageTable(FileImages(Path("root"), paths), paths, np.zeros(1000, dtype=np.int64), ["class"])
    assert len(pickle.dumps(table)) < 1.5 * len("".join(paths)) + 8 * 1000
