import io
import pickle

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.registry import known_implementations
from PIL import Image

from prism_dml.data import (
    Augment,
    BytesImages,
    PKSampler,
    StoreError,
    load_images,
    open_images,
    read_table,
    row_groups,
    storage_blocks,
)
from prism_dml.data.remote import RemoteFile, place
from prism_dml.data.row_groups import ParquetImages
from prism_dml.data.table import fetch_images

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def png(grey):
    stream = io.BytesIO()
    Image.new("L", (8, 8), grey).save(stream, "PNG")
    return stream.getvalue()


def shard(file, first, rows, group=5, **columns):
    """Images of grey level first, first + 1 ... of the classes a, b, c in turn."""
    numbers = range(first, first + rows)
    images = pa.array([{"bytes": png(i), "path": f"{i}.png"} for i in numbers], IMAGE)
    labels = ["abc"[i % 3] for i in numbers]
    pq.write_table(pa.table({"image": images, "label": labels, **columns}), file, row_group_size=group)


@pytest.fixture
def memory():
    """A folder in fsspec's memory file system, with two shards of 20 and 10 images."""
    filesystem = fsspec.filesystem("memory")
    filesystem.mkdirs("/set", exist_ok=True)
    for name, first, rows in (("train-00000-of-00001", 0, 20), ("test-00000-of-00001", 20, 10)):
        with filesystem.open(f"/set/{name}.parquet", "wb") as file:
            shard(file, first, rows)
    yield filesystem
    filesystem.rm("/set", recursive=True)


@pytest.fixture
def shards(web, tmp_path):
    """URL of a folder that the server lists, with two shards of 20 images."""
    (tmp_path / "web" / "set").mkdir()
    for name, first in (("a", 0), ("b", 20)):
        shard(tmp_path / "web" / "set" / f"{name}.parquet", first, 20)
    return f"{web.url}/set/"


def greys(table):
    return [int(np.asarray(Image.open(io.BytesIO(table.images.read(i))))[0, 0]) for i in range(len(table))]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("memory://set/train-00000-of-00001.parquet", range(20)),
        ("memory://set", [*range(20, 30), *range(20)]),
        ("memory://set/", [*range(20, 30), *range(20)]),
        ("memory://set/*.parquet", [*range(20, 30), *range(20)]),
        ("memory://set/t*n-*", range(20)),
    ],
)
def test_one_file_a_folder_or_a_pattern(memory, url, expected):
    table = read_table(url)
    assert greys(table) == list(expected)
    assert table.paths == [f"{i}.png" for i in expected]
    assert [table.classes[k] for k in table.labels] == ["abc"[i % 3] for i in expected]


def test_splits_are_those_of_the_names(memory):
    assert greys(read_table("memory://set", "test")) == list(range(20, 30))


def test_data_folder_as_on_the_hub(memory):
    memory.mv("/set/train-00000-of-00001.parquet", "/set/data/train-00000-of-00001.parquet")
    memory.rm("/set/test-00000-of-00001.parquet")
    assert greys(read_table("memory://set")) == list(range(20))


def test_file_url_is_a_path(tmp_path):
    shard(tmp_path / "a b.parquet", 0, 10)
    assert greys(read_table(f"file://{tmp_path}/a%20b.parquet")) == list(range(10))
    assert place(f"file://{tmp_path}") == tmp_path


def test_pattern_on_disk(tmp_path):
    for name, first in (("x-1", 0), ("x-2", 5), ("y", 10)):
        shard(tmp_path / f"{name}.parquet", first, 5)
    assert greys(read_table(tmp_path / "x-*.parquet")) == list(range(10))


def test_only_footers_and_labels_are_read_up_front_and_then_what_is_needed(web, shards, tmp_path):
    table = read_table(shards)
    size = sum(file.stat().st_size for file in (tmp_path / "web" / "set").iterdir())
    images = table.images
    assert isinstance(images, ParquetImages)
    # These files are smaller than what is read for a footer, so the ranges of images are looked at.
    web.served.clear()
    assert greys(table.select([3])) == [3]
    group, footer = int(np.diff(images.ranges[0])[0]), web.served[1]
    assert web.served == [group, footer] and group < size / 6
    web.served.clear()
    fetch_images(table.images, np.array([0, 7, 8, 12, 39, 38]))
    assert len(web.served) == 3 + 1  # row groups that are not held, and the footer of b
    web.served.clear()
    assert greys(table.select([0, 7, 8, 12, 39, 38])) == [0, 7, 8, 12, 39, 38]
    assert web.served == []


def test_labels_of_many_row_groups_leave_images_alone(web, tmp_path):
    file = tmp_path / "web" / "x.parquet"
    data = np.random.default_rng(0).bytes(100_000)
    rows = pa.array([{"bytes": data, "path": f"{i}"} for i in range(30)], IMAGE)
    pq.write_table(
        pa.table({"image": rows, "label": ["a", "b"] * 15}), file, row_group_size=1, compression="none"
    )
    table = read_table(f"{web.url}/x.parquet")
    assert len(table) == 30 and file.stat().st_size > 3_000_000
    # Two reads of 64 KiB at most for the footer, and 30 row groups' labels, each with little around it.
    assert sum(web.served) < 200_000


def test_table_goes_to_other_processes(shards):
    table = pickle.loads(pickle.dumps(read_table(shards)))
    assert greys(table) == list(range(40))


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_open_the_store_themselves(shards, workers):
    table = read_table(shards)
    assert greys(table.select([0])) == [0]  # the store is open before they start
    images = open_images(table, 8, Augment("none", (0.0,) * 3, (1.0,) * 3), workers, cache="stream")
    seen = list(images.evaluate(16))
    levels = [int(level) for batch in seen for level in (batch.images[:, 0, 0, 0] * 255).round()]
    assert levels == list(range(40))
    sampler = PKSampler(table.labels, 3, 2)
    batches = images.train(sampler, 0)
    assert all(next(batches).images.shape == (6, 3, 8, 8) for _ in range(len(sampler)))


def test_csv_and_class_folders(memory):
    for name in ("cat/1", "cat/2", "dog/1", ".hidden/1"):
        memory.pipe(f"/set/pets/train/{name}.png", png(len(name)))
    memory.pipe("/set/list.csv", b"path,label\npets/train/cat/1.png,x\nmemory://set/pets/train/dog/1.png,y\n")
    table = read_table("memory://set/pets")
    assert table.paths == ["train/cat/1.png", "train/cat/2.png", "train/dog/1.png"]
    assert table.classes == ["cat", "dog"] and table.splits.tolist() == ["train"] * 3
    assert greys(table) == [5, 5, 5]
    assert greys(read_table("memory://set/list.csv")) == [5, 5]
    memory.rm("/set/pets/train/cat/1.png")
    with pytest.raises(ValueError, match=r"'pets/train/cat/1.png': no such file or folder"):
        load_images(read_table("memory://set/list.csv"), 8)


def test_odd_places_of_images_are_reported(memory, caplog):
    for name in (
        "train/cat/1.png",
        "train/cat/old/2.png",
        "test/dog/1.png",
        "test/loose.png",
        "test/none/a.txt",
    ):
        memory.pipe(f"/set/pets/{name}", png(1))
    table = read_table("memory://set/pets")
    assert table.paths == ["test/dog/1.png", "train/cat/1.png", "train/cat/old/2.png"]
    assert table.classes == ["cat", "dog"] and table.splits.tolist() == ["test", "train", "train"]
    assert caplog.messages == [
        "memory://set/pets: 1 image lies outside of class folders and is ignored: 'test/loose.png'",
        "memory://set/pets: 1 file in class folders is no image by its name and is ignored: 'test/none/a.txt'",
        "memory://set/pets: 1 image lies deeper than CLASS/IMAGE, which makes no further classes: "
        "'train/cat/old/2.png' is of the class 'cat'",
        "memory://set/pets: 1 class folder has no images: test/none",
    ]


def test_images_that_do_not_fit_into_memory_are_swept_over(memory, monkeypatch):
    table = read_table("memory://set")
    assert storage_blocks(table.images) is None
    monkeypatch.setattr(row_groups, "HELD_BYTES", 1000)
    blocks = storage_blocks(table.select([0, 4, 5, 12, 29]).images)
    assert blocks.tolist() == [0, 0, 1, 2, 5]
    assert storage_blocks(BytesImages([b""] * 5)) is None


# What goes wrong


def error_of(url, kind=ValueError):
    with pytest.raises(kind) as caught:
        read_table(url)
    message = str(caught.value)
    assert "\n" not in message and url in message and "Traceback" not in message
    return message


@pytest.mark.parametrize(
    "url", ["memory://nowhere", "memory://nowhere/x.parquet", "memory://set/*.npz", "memory://set/x.csv"]
)
def test_nothing_there(memory, url):
    assert error_of(url) == f"{url}: no such file or folder"


def test_nothing_there_on_the_web(web):
    url = f"{web.url}/x.parquet"
    assert error_of(url).startswith(f"{url}: no such file")


def test_neither_shards_nor_images(memory):
    memory.pipe("/set/empty/readme.md", b"")
    assert "neither parquet files nor images found" in error_of("memory://set/empty")
    memory.pipe("/set/data.json", b"{}")
    assert "the data must be a folder, .csv" in error_of("memory://set/data.json")


def test_protocols_that_are_not_there(monkeypatch):
    assert "nonsense" in error_of("nonsense://bucket/x.parquet")
    known = {"class": "shopfs.Shop", "err": "Install shopfs to access it"}
    monkeypatch.setitem(known_implementations, "shop", known)
    assert error_of("shop://bucket/x.parquet").endswith("Install shopfs to access it")


def test_file_that_is_no_parquet(memory):
    memory.pipe("/set/bad.parquet", b"nonsense" * 100)
    assert "not a readable parquet file" in error_of("memory://set/bad.parquet")


@pytest.mark.parametrize("status", [403, 500])
def test_store_that_refuses(web, shards, status):
    web.status = status
    assert str(status) in error_of(f"{shards}a.parquet", StoreError)


def test_store_that_is_not_there(web, shards):
    url = "http://127.0.0.1:1/x.parquet"
    assert "127.0.0.1" in error_of(url, StoreError)


def test_permission_is_said(memory, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(type(memory), "info", refuse)
    assert error_of("memory://set", StoreError) == "memory://set: permission denied: Access Denied"


def test_server_without_parts(web, shards):
    web.gives_parts = False
    assert "bytes of it where" in error_of(f"{shards}a.parquet", StoreError)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("cache", ["memory", "stream"])
def test_store_that_fails_in_the_middle_is_no_unreadable_image(web, shards, cache, workers):
    table = read_table(shards)
    web.status = 503
    with pytest.raises(StoreError, match=rf"^{shards}a.parquet: .*503") as caught:
        images = open_images(table, 8, Augment("none", (0.0,) * 3, (1.0,) * 3), workers, 1.0, cache=cache)
        list(images.evaluate(16))
    assert "\n" not in str(caught.value)


def test_shard_that_is_gone_or_changed_is_unreadable_images(memory):
    table = read_table("memory://set/train-00000-of-00001.parquet")
    memory.pipe("/set/train-00000-of-00001.parquet", b"x" * 5000)
    with pytest.raises(ValueError, match="the last one: .*png.*not a readable parquet file"):
        load_images(table, 8)
    memory.rm("/set/train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="the last one: .*png.*no such file"):
        load_images(table, 8)


def test_parts_of_a_url():
    file = RemoteFile("https://host/a/b%20c.parquet?sign=x/y.z")
    assert (file.name, file.stem, file.suffix) == ("b c.parquet", "b c", ".parquet")
    assert str(RemoteFile("s3://bucket/a/b.csv").parent / "c.png") == "s3://bucket/a/c.png"
    assert str(RemoteFile("s3://bucket") / "s3://other/c.png") == "s3://other/c.png"
