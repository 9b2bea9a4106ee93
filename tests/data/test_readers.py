import errno
import json
import logging
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import prism_dml.data.row_groups as row_groups
from prism_dml.data.cache import load_images
from prism_dml.data.readers import read_table
from prism_dml.data.table import ImageTable, SelectedImages

DATA = os.environ.get("PRISM_DATA")


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def names(table: ImageTable) -> list[str]:
    return [table.classes[k] for k in table.labels]


def clean_names(table: ImageTable) -> list[str | None] | None:
    if table.clean_labels is None:
        return None
    return [table.classes[k] if k >= 0 else None for k in table.clean_labels]


def error_of(path: Path) -> str:
    with pytest.raises(ValueError) as caught:
        read_table(path)
    message = str(caught.value)
    assert "\n" not in message and str(path.name) in message
    return message


# Folders


def test_folder_of_class_folders(tmp_path: Path) -> None:
    touch(tmp_path, "tea pot/ü 1.JPG", "tea pot/deep/er/2.png", "10/a.webp", "9/b.jpeg")
    touch(
        tmp_path,
        "9/.hidden.png",
        "9/notes.txt",
        "9/Thumbs.db",
        ".cache/x.png",
        "__MACOSX/9/b.png",
        "9/.x/y.png",
    )
    (tmp_path / "empty").mkdir()
    table = read_table(tmp_path)
    assert table.classes == ["10", "9", "tea pot"]
    assert table.paths == ["10/a.webp", "9/b.jpeg", "tea pot/ü 1.JPG", "tea pot/deep/er/2.png"]
    assert names(table) == ["10", "9", "tea pot", "tea pot"]
    assert [table.images.read(i) for i in range(4)] == [path.encode() for path in table.paths]
    assert table.splits is None and table.clean_labels is None
    with pytest.raises(ValueError, match="the data has no splits; leave split out"):
        read_table(str(tmp_path), split="test")


def test_folder_with_splits(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.png", "train/b/1.png", "test/c/1.png", "train/b/2.png")
    table = read_table(tmp_path)
    assert table.splits is not None and table.splits.tolist() == ["test", "train", "train", "train"]
    assert read_table(tmp_path, "train").classes == ["a", "b"]
    assert read_table(tmp_path, "test").paths == ["test/c/1.png"]
    with pytest.raises(ValueError, match="it has: test, train"):
        read_table(tmp_path, "validation")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    touch(tmp_path, "train/1.png", "bus/1.png", "car/1.png")
    assert read_table(tmp_path).classes == ["bus", "car", "train"]


def test_one_class_is_accepted(tmp_path: Path) -> None:
    touch(tmp_path, "only/1.png")
    assert read_table(tmp_path).classes == ["only"]


def test_images_outside_of_class_folders_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "a/1.png", "loose 1.png", "loose 2.png", "readme.md")
    with caplog.at_level(logging.WARNING, "prism_dml"):
        assert len(read_table(tmp_path)) == 1
    assert caplog.messages == [
        f"{tmp_path}: 2 images lie outside of class folders and are ignored, one of them: 'loose 1.png'"
    ]


def test_one_loose_image_beside_splits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "train/a/1.png", "test/b/1.png", "test/loose.png")
    assert len(read_table(tmp_path)) == 2
    assert caplog.messages == [
        f"{tmp_path}: 1 image lies outside of class folders and is ignored: 'test/loose.png'"
    ]


def test_folders_below_class_folders_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "Fruit/Apple/1.jpg", "Fruit/Pear/1.jpg", "Leek/1.jpg")
    assert read_table(tmp_path).classes == ["Fruit", "Leek"]
    assert caplog.messages == [
        f"{tmp_path}: 2 images lie deeper than CLASS/IMAGE, which makes no further classes: 'Fruit/Apple/1.jpg' is of "
        "the class 'Fruit'"
    ]


def test_depth_is_counted_below_splits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "train/cars/1.png", "test/cars/1.png", "test/cars/old/1.png")
    assert read_table(tmp_path).classes == ["cars"]
    assert len(caplog.messages) == 1 and "1 image lies deeper" in caplog.messages[0]
    assert "'test/cars/old/1.png' is of the class 'cars'" in caplog.messages[0]
    caplog.clear()
    touch(tmp_path, "dogs/1.png")  # train/ and test/ are classes now
    assert read_table(tmp_path).classes == ["dogs", "test", "train"]
    assert "3 images lie deeper" in caplog.messages[0]
    assert "'test/cars/1.png' is of the class 'test'" in caplog.messages[0]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a/1.png", "a/deep/2.png", "b/3.png")
    (tmp_path / "lost+found").mkdir()  # of the system, and only root can list it
    scandir = os.scandir

    def refusing(folder: Path) -> object:
        if Path(folder).name in ("deep", "lost+found"):  # as by its permissions, which do not hold root back
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(PermissionError) as caught:
        read_table(tmp_path)
    assert caught.value.filename == str(tmp_path / "a" / "deep")
    assert caught.value.strerror == "folder cannot be listed (Permission denied)"
    (tmp_path / "a" / "deep").rename(tmp_path / "a" / "open")
    assert len(read_table(tmp_path)) == 3


def test_class_folders_without_images_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "train/a/1.png", "train/b/notes.txt", "test/c/1.png")
    read_table(tmp_path)
    assert caplog.messages == [
        f"{tmp_path}: 1 file in class folders is no image by its name and is ignored: 'train/b/notes.txt'",
        f"{tmp_path}: 1 class folder has no images: train/b",
    ]
    caplog.clear()
    (tmp_path / "train" / "b" / "notes.txt").unlink()
    for i in range(200):
        (tmp_path / "test" / f"{i:03}").mkdir()
    read_table(tmp_path)
    assert "201 class folders have no images: test/000, test/001, " in caplog.messages[0]
    assert len(caplog.messages[0]) < 400 + len(str(tmp_path))


def test_folders_without_images(tmp_path: Path) -> None:
    assert "no images found" in error_of(tmp_path)
    touch(tmp_path, "a/readme.txt")
    assert "no images found" in error_of(tmp_path)


# CSV


def write(file: Path, text: str, encoding: str = "utf-8") -> Path:
    file.write_text(text, encoding=encoding)
    return file


def test_csv_with_header(tmp_path: Path) -> None:
    text = 'split, Path ,label,clean_label,extra\ntrain,a b/ü.png, cat,dog,1\ntest,"c,d.png",dog ,dog,2\n\n'
    table = read_table(write(tmp_path / "list.csv", text))
    assert table.classes == ["cat", "dog"]
    assert names(table) == ["cat", "dog"] and clean_names(table) == ["dog", "dog"]
    assert table.paths == ["a b/ü.png", "c,d.png"]
    assert table.splits is not None and table.splits.tolist() == ["train", "test"]
    touch(tmp_path, "a b/ü.png")
    assert table.images.read(0) == "a b/ü.png".encode()


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv_dialects(tmp_path: Path, delimiter: str, encoding: str, newline: str) -> None:
    rows = [["path", "label"], ["ä.png", "10"], ["b.png", "9"]]
    file = tmp_path / "list.tsv"
    file.write_bytes(newline.join(delimiter.join(row) for row in rows).encode(encoding))
    table = read_table(file)
    assert table.paths == ["ä.png", "b.png"]
    assert table.classes == ["9", "10"] and table.labels.tolist() == [1, 0]


def test_csv_paths_are_absolute_or_seen_from_its_folder(tmp_path: Path) -> None:
    touch(tmp_path, "x/1.png", "lists/2.png")
    file = write(tmp_path / "lists/a.csv", f"path,label\n../x/1.png,a\n{tmp_path}/x/1.png,a\n2.png,a\n")
    table = read_table(file)
    assert [table.images.read(i) for i in range(3)] == [b"x/1.png", b"x/1.png", b"lists/2.png"]


def test_csv_names_with_line_breaks_quotes_and_na(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "list.csv", 'path,label\n"a\n""b"".png",NA\nc.png,null\n'))
    assert table.paths == ['a\n"b".png', "c.png"]
    assert table.classes == ["NA", "null"]


def test_csv_clean_label_outside_of_the_classes(tmp_path: Path) -> None:
    text = "path,label,clean_label,is_noisy\n1.png,a,,True\n2.png,a,a,False\n"
    table = read_table(write(tmp_path / "list.csv", text))
    assert clean_names(table) == [None, "a"]
    assert table.is_noisy is not None and table.is_noisy.tolist() == [True, False]


def test_missing_image_is_an_unreadable_one(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "list.csv", "path,label\nnot there.png,a\n"))
    with pytest.raises(ValueError, match=r"'not there\.png': No such file"):
        load_images(table, 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("\n \n", "the file is empty"),
        ("path,label\n", "a header, but no rows"),
        ("path,class\na.png,b\n", "no column 'label'; the columns are: path, class"),
        ("file,label\na.png,b\n", "no column 'path'"),
        ("path,label,label\na.png,b,c\n", "more than one column 'label'"),
        ("path,label\na.png,b\nc.png\n", "line 3: 1 fields, but the header has 2"),
        ("path,label\na.png,b,c\n", "line 2: 3 fields, but the header has 2"),
        ("path,label\na.png,b\nc.png,\n", "line 3: no label"),
        ("path,label\na.png,nan\n", "line 2: no label"),
        ("path,label\na.png,NaN\n", "line 2: no label"),
        ("path,label\n,b\n", "line 2: no path"),
        ("path,label,split\na.png,b,\n", "line 2: no split"),
        ("path,label,clean_label\na.png,b,\n", "line 2: no clean_label"),
        ("path,label,clean_label,is_noisy\na.png,b,,False\n", "line 2: no clean_label"),
        ('path,label\n"a.png,b\n', "line 2: unexpected end of data"),
        (
            "a.png,cat\n",
            "line 1: neither a header with path,label nor a path and a whole number: 'a.png,cat'",
        ),
        ("a.png,1\nb.png\n", "line 2: neither"),
        ("a.png,1\nb.png,\n", "line 2: neither"),
    ],
)
def test_bad_csv(tmp_path: Path, text: str, message: str) -> None:
    assert message in error_of(write(tmp_path / "list.csv", text))


def test_csv_in_another_encoding(tmp_path: Path) -> None:
    assert "not a text file in UTF-8" in error_of(
        write(tmp_path / "list.csv", "path,label\nü.png,a\n", "latin-1")
    )


# The header-less lists of the paper


@pytest.mark.parametrize("separator", [",", " ", "\t", ", ", " , "])
def test_list_without_header(tmp_path: Path, separator: str) -> None:
    text = f"/data/AM General Hummer/1,5.jpg{separator}11\n\nb.jpg{separator}2\n"
    table = read_table(write(tmp_path / "cars.txt", text))
    assert table.paths == ["/data/AM General Hummer/1,5.jpg", "b.jpg"]
    assert table.classes == ["2", "11"] and table.labels.tolist() == [1, 0]
    assert table.clean_labels is None


@pytest.mark.parametrize(
    ("noisy", "cleaned"),
    [
        ("CARS_0.5noised_train.csv", "CARS_0.5noised_cleaned_train.csv"),
        ("CARS_noisy_train.txt", "CARS_cleaned_train.txt"),
        ("noised.csv", "cleaned.csv"),
        ("CARS_98N.csv", "CARS_cleaned.csv"),
    ],
)
def test_companion_list_is_the_truth(tmp_path: Path, noisy: str, cleaned: str) -> None:
    write(tmp_path / noisy, "a.jpg,1\nb.jpg,2\nc.jpg,1\nd.jpg,2\n")
    write(tmp_path / cleaned, "a.jpg,1\nd.jpg,1\n")
    assert clean_names(read_table(tmp_path / noisy)) == ["1", None, None, None]
    assert clean_names(read_table(tmp_path / cleaned)) is None


def test_cleaned_list_of_other_images_is_no_companion(tmp_path: Path) -> None:
    write(tmp_path / "CARS_test.csv", "a.jpg,1\nb.jpg,2\n")
    write(tmp_path / "CARS_cleaned.csv", "x.jpg,1\n")
    assert clean_names(read_table(tmp_path / "CARS_test.csv")) is None


def test_links_that_lead_back_are_not_followed(tmp_path: Path) -> None:
    for name in ("a/deep", "b"):
        (tmp_path / "x" / name).mkdir(parents=True)
        write(tmp_path / "x" / name / "1.png", "")
    (tmp_path / "x" / "a" / "deep" / "up").symlink_to(tmp_path / "x" / "a")
    (tmp_path / "x" / "b" / "all").symlink_to(tmp_path / "x")
    (tmp_path / "x" / "b" / "other").symlink_to(tmp_path / "x" / "a")
    assert read_table(tmp_path / "x").paths == [
        "a/deep/1.png",
        "b/1.png",
        "b/other/deep/1.png",
    ]


# Parquet


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def images(n: int, prefix: str = "") -> pa.Array:
    return pa.array([{"bytes": f"{prefix}{i}".encode(), "path": f"{prefix}{i}.png"} for i in range(n)], IMAGE)


def write_parquet(file: Path, row_group: int = 2, **columns: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file, row_group_size=row_group)
    return file


def test_parquet(tmp_path: Path) -> None:
    labels, truth = ["b", "a", "b", "c", "a"], ["a", "a", "b", "c", "b"]
    splits = ["train", "train", "test", "test", "train"]
    file = write_parquet(
        tmp_path / "x.parquet", image=images(5), label=labels, clean_label=truth, split=splits
    )
    table = read_table(file)
    assert names(table) == labels and clean_names(table) == truth
    assert table.paths == [f"{i}.png" for i in range(5)]
    assert [table.images.read(i) for i in (4, 0, 3, 2, 1)] == [b"4", b"0", b"3", b"2", b"1"]
    assert read_table(file, "test").classes == ["b", "c"]
    assert read_table(file, "test").images.read(1) == b"3"


@pytest.mark.parametrize("type_", [pa.int64(), pa.uint8(), pa.int32()])
def test_parquet_integer_labels_sort_by_number(tmp_path: Path, type_: pa.DataType) -> None:
    labels = pa.array([10, 9, 10], type_)
    table = read_table(write_parquet(tmp_path / "x.parquet", image=images(3), label=labels))
    assert table.classes == ["9", "10"] and table.labels.tolist() == [1, 0, 1]


def test_parquet_categories(tmp_path: Path) -> None:
    labels = pa.array(["b", "a", "b"]).dictionary_encode()
    assert names(read_table(write_parquet(tmp_path / "x.parquet", image=images(3), label=labels))) == [
        "b",
        "a",
        "b",
    ]


@pytest.mark.parametrize(
    "text, data", [(pa.string_view(), pa.binary_view()), (pa.large_string(), pa.large_binary())]
)
def test_parquet_texts_and_bytes_of_every_layout(
    tmp_path: Path, text: pa.DataType, data: pa.DataType
) -> None:
    labels = ["b", "a name longer than a view holds in place", "b"]
    image = images(3).cast(pa.struct([("bytes", data), ("path", text)]))
    columns = {name: pa.array(labels, text) for name in ("label", "clean_label", "split")}
    table = read_table(write_parquet(tmp_path / "x.parquet", row_group=3, image=image, **columns))
    assert names(table) == clean_names(table) == labels and table.splits.tolist() == labels
    assert table.paths == ["0.png", "1.png", "2.png"] and table.images.read(2) == b"2"


def test_parquet_class_names_of_the_hub(tmp_path: Path) -> None:
    features = {"label": {"_type": "ClassLabel", "names": ["zebra", "ape"]}, "image": {"_type": "Image"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    rows = pa.table({"image": images(3), "label": pa.array([1, 0, 1])}).replace_schema_metadata(metadata)
    pq.write_table(rows, tmp_path / "x.parquet")
    assert names(read_table(tmp_path / "x.parquet")) == ["ape", "zebra", "ape"]
    unlabelled = rows.set_column(1, "label", pa.array([1, -1, 1]))
    pq.write_table(unlabelled, tmp_path / "x.parquet")
    assert "row 1: no label" in error_of(tmp_path / "x.parquet")
    features["label"]["names"][0] = "Nan"  # no list could hold it
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(rows.replace_schema_metadata(metadata), tmp_path / "x.parquet")
    assert "row 1: no label" in error_of(tmp_path / "x.parquet")


@pytest.mark.parametrize("folder", ["", "data"])
def test_parquet_shards(tmp_path: Path, folder: str) -> None:
    place = tmp_path / folder
    write_parquet(place / "train-00000-of-00002.parquet", image=images(3, "p"), label=["a", "b", "a"])
    write_parquet(place / "train-00001-of-00002.parquet", image=images(2, "q"), label=["c", "b"])
    write_parquet(place / "test-00000-of-00001.parquet", image=images(1, "r"), label=["d"])
    write_parquet(place / ".tmp.parquet", image=images(1), label=["hidden"])
    table = read_table(tmp_path)
    assert names(table) == ["d", "a", "b", "a", "c", "b"]
    assert [table.images.read(i) for i in range(6)] == [b"r0", b"p0", b"p1", b"p2", b"q0", b"q1"]
    assert read_table(tmp_path, "train").paths == ["p0.png", "p1.png", "p2.png", "q0.png", "q1.png"]


def test_parquet_paths_that_repeat_give_way_to_rows(tmp_path: Path) -> None:
    for shard in "ab":
        write_parquet(tmp_path / f"{shard}.parquet", image=images(2), label=["x", "y"])
    table = read_table(tmp_path)
    assert table.paths == ["a.parquet#0", "a.parquet#1", "b.parquet#0", "b.parquet#1"]
    assert table.splits is None


def test_parquet_images_without_path_and_without_bytes(tmp_path: Path) -> None:
    only_bytes = pa.array([{"bytes": b"0"}], pa.struct([("bytes", pa.large_binary())]))
    table = read_table(write_parquet(tmp_path / "x.parquet", image=only_bytes, label=["a"]))
    assert table.paths == ["x.parquet#0"] and table.images.read(0) == b"0"

    touch(tmp_path, "in a file.png")
    rows = pa.array([{"bytes": None, "path": "in a file.png"}, {"bytes": None, "path": None}, None], IMAGE)
    table = read_table(write_parquet(tmp_path / "y.parquet", image=rows, label=["a", "b", "c"]))
    assert table.images.read(0) == b"in a file.png"
    for i in (1, 2):
        with pytest.raises(ValueError, match="the row has no image"):
            table.images.read(i)


def test_parquet_holds_only_some_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_groups, "HELD_BYTES", 2500)
    data = [bytes([i]) * 1000 for i in range(20)]
    rows = pa.array([{"bytes": item, "path": None} for item in data], IMAGE)
    table = read_table(write_parquet(tmp_path / "x.parquet", row_group=1, image=rows, label=["a"] * 20))
    source = table.images
    assert isinstance(source, row_groups.ParquetImages)
    for i in np.random.default_rng(0).integers(0, 20, 200):
        assert source.read(int(i)) == data[i]
        assert len(source._held) <= 2 and source._held_bytes == sum(
            group.nbytes for group in source._held.values()
        )


def test_parquet_table_pickles_without_its_images(tmp_path: Path) -> None:
    rows = pa.array([{"bytes": bytes(100_000), "path": f"{i}"} for i in range(10)], IMAGE)
    table = read_table(write_parquet(tmp_path / "x.parquet", image=rows, label=["a"] * 10)).select(range(5))
    table.images.read(3)
    pickled = pickle.dumps(table)
    assert len(pickled) < 5000
    assert pickle.loads(pickled).images.read(4) == bytes(100_000)


def test_bad_parquet(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    cases: list[tuple[dict[str, object], str]] = [
        ({"label": ["a"]}, "no column 'image'; the columns are: label"),
        ({"image": images(1)}, "no column 'label'; the columns are: image"),
        ({"image": [b"raw"], "label": ["a"]}, "'image' must be a struct of bytes and path, it is binary"),
        ({"image": images(1), "label": [0.5]}, "'label' must be text or integer, it is double"),
        ({"image": images(1), "label": ["a"], "split": [1]}, "'split' must be text, it is int64"),
        ({"image": images(2), "label": ["a", None]}, "row 1: no label"),
        ({"image": images(2), "label": [1, None]}, "row 1: no label"),
        ({"image": images(1), "label": [""]}, "row 0: no label"),
        ({"image": images(1), "label": ["a"], "split": pa.array([None], pa.string())}, "row 0: no split"),
        (
            {"image": images(1), "label": ["a"], "clean_label": pa.array([None], pa.string())},
            "row 0: no clean_label",
        ),
        ({"image": images(0), "label": pa.array([], pa.string())}, "no rows"),
    ]
    for columns, message in cases:
        assert message in error_of(write_parquet(file, **columns))


def test_corrupt_parquet(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "x.parquet", image=images(50), label=["a"] * 50)
    whole = file.read_bytes()
    for damaged in (b"", b"PAR1", whole[: len(whole) // 2], b"x" * 1000):
        file.write_bytes(damaged)
        assert "not a readable parquet file" in error_of(file)


def test_row_group_damaged_after_the_table_was_read_is_unreadable_images(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "x.parquet", image=images(4), label=["a"] * 4)
    table = read_table(file)
    file.write_bytes(b"x" * 1000)
    with pytest.raises(ValueError, match=r"none of the 4 .*3.png.*not a readable parquet file"):
        load_images(table, 8)


def test_shards_with_different_columns(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", image=images(1), label=["x"])
    write_parquet(tmp_path / "b.parquet", image=images(1), label=[1])
    with pytest.raises(ValueError, match=r"b.parquet: label \(integer\), but a.parquet has label \(text\)"):
        read_table(tmp_path)


# Dispatch


def test_nothing_there_or_something_else(tmp_path: Path) -> None:
    assert "no such file or folder" in error_of(tmp_path / "missing.csv")
    touch(tmp_path, "data.json")
    assert "must be a folder of class folders" in error_of(tmp_path / "data.json")


@pytest.mark.skipif(DATA is None, reason="PRISM_DATA is not set")
@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("omniglot", (19_280, 964), (13_180, 659)),
        ("grocery", (3_051, 41), (2_370, 40)),
        ("cifar100_sub", (12_500, 50), (5_000, 50)),
        ("cifar10n_worse", (50_000, 10), (10_000, 10)),
    ],
)
def test_real_data(name: str, train: tuple[int, int], test: tuple[int, int]) -> None:
    table = read_table(Path(str(DATA)) / f"{name}.parquet")
    for split, sizes in (("train", train), ("test", test)):
        part = table.split(split)
        assert (len(part), part.num_classes) == sizes
        assert isinstance(part.images, SelectedImages) and len(part.images.read(0)) > 100
    noisy = table.split("train").is_noisy
    assert (noisy is not None) == (name == "cifar10n_worse")
    assert noisy is None or noisy.mean() == pytest.approx(0.402, abs=0.001)


@pytest.mark.parametrize("column", ["path", "label"])
def test_texts_that_are_no_utf8_are_refused(column: str, tmp_path: Path) -> None:
    broken = pa.array([b"tea\xe7", b"cup"]).view(pa.string())
    whole = pa.array(["a.png", "b.png"])
    paths, labels = (broken, whole) if column == "path" else (whole, broken)
    image = pa.StructArray.from_arrays([pa.array([b"1", b"2"]), paths], ["bytes", "path"])
    pq.write_table(pa.table({"image": image, "label": labels}), tmp_path / "data.parquet")
    with pytest.raises(ValueError, match="data.parquet: not a readable parquet file: .*UTF"):
        read_table(tmp_path / "data.parquet")


# Names that a list could not hold, or that would be read as no class


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux only")
def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "a" / "1.png").rename(tmp_path / "a" / "caf\udce9.png")
    with pytest.raises(ValueError, match=r"the name 'a/caf\\udce9\.png' is not text in UTF-8"):
        read_table(tmp_path)


def test_a_class_folder_whose_name_means_no_class_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "NaN/1.png", "b/2.png")
    assert "the class folder 'NaN' has a name that stands for no class" in error_of(tmp_path)


def test_spaces_around_names_of_classes_do_not_count(tmp_path: Path) -> None:
    touch(tmp_path / "photos", "a/1.png", "a /2.png", " b/3.png")
    table = read_table(tmp_path / "photos")
    assert (table.classes, table.paths) == (["a", "b"], [" b/3.png", "a/1.png", "a /2.png"])
    image = pa.array([{"bytes": b"x", "path": None}] * 2)
    pq.write_table(pa.table({"image": image, "label": ["cat", "cat "]}), tmp_path / "x.parquet")
    assert read_table(tmp_path / "x.parquet").classes == ["cat"]


def test_csv_with_a_quoted_header(tmp_path: Path) -> None:
    for delimiter in ",;\t":
        text = '"path","label"\n"1.png","a"\n"2.png","b"\n'.replace(",", delimiter)
        (tmp_path / "x.csv").write_text(text)
        assert read_table(tmp_path / "x.csv").classes == ["a", "b"]
    (tmp_path / "x.csv").write_text('path,label,seen;by,"note, more"\n1.png,a,x,y\n2.png,b,x,y\n')
    assert read_table(tmp_path / "x.csv").classes == ["a", "b"]


def test_a_file_of_a_companions_name_that_is_none_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "photos.csv").write_text("1.png,1\n2.png,2\n")
    (tmp_path / "photos_cleaned.csv").write_text("path,label\n1.png,1\n2.png,1\n")
    assert read_table(tmp_path / "photos.csv").clean_labels is None
    assert "photos_cleaned.csv: not taken for the list of the clean samples" in caplog.text


def test_one_list_of_class_names_serves_both_kinds_of_label(tmp_path: Path) -> None:
    feature = {"label": {"_type": "ClassLabel", "names": ["bird", "cat "]}}
    metadata = {"huggingface": json.dumps({"info": {"features": feature}})}
    columns = {"image": pa.array([{"bytes": b"x", "path": None}] * 3), "label": [0, 1, 1]}
    table = pa.table(columns | {"clean_label": [0, 1, 0]}).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "x.parquet")
    read = read_table(tmp_path / "x.parquet")
    assert (read.classes, clean_names(read)) == (["bird", "cat"], ["bird", "cat", "bird"])
    columns["label"] = ["bird", "cat", "cat"]
    pq.write_table(pa.table(columns | {"clean_label": [0, 1, 0]}), tmp_path / "y.parquet")
    assert "no clean_label is the name of a label" in error_of(tmp_path / "y.parquet")


def test_a_home_that_nobody_has(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no home folder is known for ~nobody-of-this-name"):
        read_table("~nobody-of-this-name/photos")


def test_photos_without_a_known_suffix_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a/1.png", "a/2.jpg?v=3", "b/3", "b/4.png", "b/Thumbs.db")
    assert len(read_table(tmp_path)) == 2
    assert caplog.messages == [
        f"{tmp_path}: 2 files in class folders are no images by their names and are ignored, one of them: "
        "'a/2.jpg?v=3'"
    ]


def test_a_folder_with_other_parquet_says_what_it_is_read_as(tmp_path: Path) -> None:
    touch(tmp_path / "photos", "a/1.png", "b/2.png")
    pq.write_table(pa.table({"path": ["a/1.png"]}), tmp_path / "photos" / "embeddings.parquet")
    with pytest.raises(
        ValueError, match=r"no column 'image'.*a folder with \.parquet files is read as these only"
    ):
        read_table(tmp_path / "photos")
