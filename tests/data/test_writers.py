import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from prism_dml.data.noise import corrupt_table
from prism_dml.data.readers import read_table
from prism_dml.data.table import BytesImages, ImageTable
from prism_dml.data.writers import write_table


def image(i: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(i).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "my data"
    for i in range(240):
        file = root / ("test" if i % 4 == 3 else "train") / f"klass, {'äbcd'[i % 4]}" / f'no "{i}".png'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(image(i))
    return root


def content(table: ImageTable) -> list[tuple[object, ...]]:
    """All that a table says about each sample."""
    truth = [None] * len(table) if table.clean_labels is None else table.clean_labels.tolist()
    return [
        (
            table.images.read(i),
            table.classes[table.labels[i]],
            table.classes[truth[i]] if truth[i] is not None and truth[i] >= 0 else truth[i],
            None if table.splits is None else table.splits[i],
        )
        for i in range(len(table))
    ]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".PARQUET"])
@pytest.mark.parametrize("kind", ["symmetric", "small-cluster"])
def test_round_trip(folder: Path, tmp_path: Path, suffix: str, kind: str) -> None:
    noisy = corrupt_table(read_table(folder), kind, 1 / 3, seed=0)  # type: ignore[arg-type]
    for table in (noisy, noisy.split("train"), read_table(folder)):
        out = tmp_path / "new folder" / f"noisy{suffix}"
        write_table(table, out, folder)
        again = read_table(out)
        assert content(again) == content(table)
        assert [file.name for file in out.parent.iterdir()] == [out.name]


def test_csv_columns(folder: Path, tmp_path: Path) -> None:
    table = corrupt_table(read_table(folder), "small-cluster", 1 / 3, seed=0).split("train")
    write_table(table, tmp_path / "noisy.csv")
    lines = (tmp_path / "noisy.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "path,label,clean_label,is_noisy,split"
    assert sum(line.endswith(",,True,train") for line in lines) == 60
    assert lines[1].startswith('"my data/train/klass, ')


def test_csv_paths_lead_back_through_links(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "far/away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far/away")
    write_table(read_table(folder), tmp_path / "link/list.csv")
    assert read_table(tmp_path / "link/list.csv").images.read(0) == read_table(folder).images.read(0)


def test_parquet_is_in_the_hubs_layout(folder: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    out = tmp_path / "x.parquet"
    write_table(read_table(folder), out, progress=lambda *state: seen.append(state))
    file = pq.ParquetFile(out)
    assert file.schema_arrow.names == ["image", "label", "split"]
    assert [file.metadata.row_group(i).num_rows for i in range(3)] == [100, 100, 40]
    features = json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"} and features["label"] == {
        "_type": "Value",
        "dtype": "string",
    }
    assert seen == [(100, 240), (200, 240), (240, 240)]
    assert read_table(out).paths == read_table(folder).paths


def test_images_in_no_files_go_to_parquet_only(tmp_path: Path) -> None:
    table = ImageTable.from_names(BytesImages([image(0)]), ["0"], ["a"])
    with pytest.raises(ValueError, match=r"the output must be \.parquet"):
        write_table(table, tmp_path / "x.csv")
    assert list(tmp_path.iterdir()) == []
    write_table(table, tmp_path / "x.parquet")
    assert content(read_table(tmp_path / "x.parquet")) == content(table)


@pytest.mark.parametrize("name", ["x.txt", "x", "x.csv.gz"])
def test_other_kinds_of_files(folder: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"must be a .csv or a .parquet"):
        write_table(read_table(folder), tmp_path / name)


def test_input_is_never_overwritten(folder: Path, tmp_path: Path) -> None:
    listed, packed = tmp_path / "list.csv", tmp_path / "packed.parquet"
    write_table(read_table(folder), listed)
    write_table(read_table(folder), packed)
    before = listed.read_bytes(), packed.read_bytes()
    (tmp_path / "alias.csv").symlink_to(listed)
    os.link(packed, tmp_path / "alias.parquet")
    for source, out in (
        (listed, listed),
        (listed, tmp_path / "alias.csv"),
        (tmp_path / "alias.csv", listed),
        (packed, packed),
        (packed, tmp_path / "alias.parquet"),
        (None, packed),
    ):
        with pytest.raises(ValueError, match="it is the input"):
            write_table(read_table(source or packed).select([0, 1]), out, source)
    with pytest.raises(ValueError, match="it would become a part of the input"):
        write_table(read_table(folder), folder / "all.parquet", folder)
    assert (listed.read_bytes(), packed.read_bytes()) == before
    write_table(read_table(folder), folder / "list.csv", folder)  # a list among the images changes nothing
    assert len(read_table(folder)) == 240


def test_the_truth_of_a_list_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a_noisy.csv").write_text("1.png,1\n2.png,2\n")
    (tmp_path / "a_cleaned.csv").write_text("1.png,1\n")
    source = tmp_path / "a_noisy.csv"
    with pytest.raises(ValueError, match="it is the input"):
        write_table(read_table(source), tmp_path / "a_cleaned.csv", source)


def test_names_that_no_list_can_hold(tmp_path: Path) -> None:
    (tmp_path / "in" / "a\rb").mkdir(parents=True)
    (tmp_path / "in" / "a\rb" / "1.png").write_bytes(b"one")
    table = read_table(tmp_path / "in")
    with pytest.raises(ValueError, match=r"no list can hold the name .*; the output must be .parquet"):
        write_table(table, tmp_path / "out.csv")
    write_table(table, tmp_path / "out.parquet")
    assert read_table(tmp_path / "out.parquet").classes == table.classes == ["a\rb"]


def test_failure_leaves_the_old_file_and_no_scraps(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "x.parquet"
    table = read_table(folder)
    write_table(table.select([0]), out)
    before = out.read_bytes()
    (folder / table.paths[150]).unlink()
    with pytest.raises(ValueError, match=r"cannot be read: .*No such file"):
        write_table(table, out)
    assert out.read_bytes() == before
    assert list(out.parent.iterdir()) == [out]


def test_place_that_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        write_table(read_table(folder), tmp_path / "file" / "x.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ValueError, match=r"must be a \.csv"):
        write_table(read_table(folder), tmp_path / "folder.csv")


def test_what_a_pattern_matches_is_not_written(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    write_table(read_table(folder), tmp_path / "shards" / "a.parquet")
    pattern = str(tmp_path / "shards" / "*.parquet")
    with pytest.raises(ValueError, match="it would become a part of the input"):
        write_table(read_table(pattern), tmp_path / "shards" / "b.parquet", pattern)
    write_table(read_table(pattern), tmp_path / "b.parquet", pattern)


def test_a_link_stays_and_a_pipe_is_left_alone(folder: Path, tmp_path: Path) -> None:
    real, link, pipe = tmp_path / "real.csv", tmp_path / "link.csv", tmp_path / "pipe.csv"
    real.write_text("")
    link.symlink_to(real)
    write_table(read_table(folder), link)
    assert link.is_symlink()
    assert len(read_table(real)) == 240
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match="a pipe or a device is there"):
        write_table(read_table(folder), pipe)
    assert pipe.is_fifo()
