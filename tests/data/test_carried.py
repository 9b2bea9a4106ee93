"""Columns that no table reads go through from lists and parquet to what is written, as they are."""

import csv
import datetime
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prism_dml.data import corrupt_table, read_table, write_table

LIST = (
    "\ufeffsku;Path;note;Label;;is_noisy;clean_label;note\r\n"
    '007;a.png;"x;""y"", z";a;;yes;a;1.0\r\n'
    "\r\n"
    '1e5;b.png;"two\r\nlines";b; ;;b;NaN\r\n'
    '"";c.png;"old\rmac";a;é;;a;True\r\n'
)


@pytest.fixture
def listed(tmp_path):
    (tmp_path / "list.csv").write_bytes(LIST.encode())
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(name.encode())
    return tmp_path / "list.csv"


def cells(file):
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.reader(stream, strict=True))


def test_a_list_keeps_its_columns_in_place(listed, tmp_path):
    table = corrupt_table(read_table(listed), "pair", 1.0, 0)
    write_table(table.select([2, 0, 1]).select([0, 2]), tmp_path / "out.csv", listed)
    assert cells(tmp_path / "out.csv") == [
        ["sku", "Path", "note", "Label", "", "is_noisy", "clean_label", "note"],
        ["", "c.png", "old\rmac", "b", "é", "True", "a", "True"],
        ["1e5", "b.png", "two\r\nlines", "a", " ", "True", "b", "NaN"],
    ]
    again = read_table(tmp_path / "out.csv")
    assert [again.classes[k] for k in again.labels] == ["b", "a"]
    assert again.images.read(0) == b"c"


def test_new_columns_stand_behind_the_others(tmp_path):
    (tmp_path / "list.csv").write_text("path,label,note\na.png,a,1\nb.png,b,2\n")
    write_table(corrupt_table(read_table(tmp_path / "list.csv"), "pair", 0, 0), tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == (
        "path,label,note,clean_label,is_noisy\na.png,a,1,a,False\nb.png,b,2,b,False\n"
    )


@pytest.mark.parametrize("end", [".csv", ".parquet"])
def test_what_is_said_of_a_label_does_not_outlive_it(end, tmp_path):
    """Without the truth is_noisy would be of the labels as they were."""
    (tmp_path / "list.csv").write_text("path,label,is_noisy,note\na.png,a,True,1\nb.png,b,False,2\n")
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(name.encode())
    write_table(read_table(tmp_path / "list.csv"), tmp_path / f"out{end}")
    names = (
        cells(tmp_path / "out.csv")[0] if end == ".csv" else pq.read_schema(tmp_path / "out.parquet").names
    )
    assert "note" in names and "label" in names and "is_noisy" not in names


def test_a_list_becomes_parquet(listed, tmp_path, caplog):
    write_table(read_table(listed), tmp_path / "out.parquet", listed)
    rows = pq.read_table(tmp_path / "out.parquet")
    assert rows.column_names == ["sku", "image", "label", "", "is_noisy", "clean_label"]
    assert rows["sku"].to_pylist() == ["007", "1e5", ""]
    assert rows[""].to_pylist() == ["", " ", "é"]
    assert caplog.messages == [
        f"{tmp_path / 'out.parquet'}: these columns of the input cannot be carried along: note"
    ]


def test_what_parquet_would_take_for_its_own_is_named(tmp_path, caplog):
    (tmp_path / "list.csv").write_text("path,image,label,is_noisy\na.png,front,a,maybe\n")
    (tmp_path / "a.png").write_bytes(b"a")
    write_table(read_table(tmp_path / "list.csv"), tmp_path / "out.parquet")
    assert pq.read_schema(tmp_path / "out.parquet").names == ["image", "label"]
    assert caplog.messages[0].endswith("cannot be carried along: image, is_noisy")
    assert len(read_table(tmp_path / "out.parquet")) == 1


def shard(file, numbers, **columns):
    """Images, labels and other columns of the rows with these numbers, in small row groups."""
    images = [{"bytes": str(i).encode(), "path": f"{i}.png"} for i in numbers]
    rows = {"sku": [f"{i:03}" for i in numbers], "label": ["ab"[i % 2] for i in numbers], "image": images}
    features = {"kind": {"_type": "ClassLabel", "names": ["x"]}, "gone": {"_type": "Value"}}
    schema = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    table = pa.table(rows | columns).replace_schema_metadata(schema)
    pq.write_table(table, file, row_group_size=7)


def test_parquet_keeps_its_columns_with_their_types(tmp_path):
    day = datetime.date(2024, 2, 29)
    others = {
        "kind": pa.array([0] * 30),
        "a.b": pa.array([f"{i % 3}" for i in range(30)]).dictionary_encode(),
        "when": pa.array([day, None, day] * 10),
        "vector": pa.array([[i / 2, None] for i in range(30)], pa.list_(pa.float32(), 2)),
        "nested": pa.array([{"i": i, "l": [str(i)]} for i in range(30)]),
        "bytes": pa.array([b"\xff"] * 30, pa.large_binary()),
    }
    (tmp_path / "in").mkdir()
    shard(tmp_path / "in" / "0.parquet", range(30), **others)
    schema = pq.read_schema(tmp_path / "in" / "0.parquet")
    place = schema.get_field_index("bytes")  # missing in the other, so that it must not stay as it is
    strict = schema.set(place, schema.field(place).with_nullable(False))
    pq.write_table(
        pq.read_table(tmp_path / "in" / "0.parquet").cast(strict), tmp_path / "in" / "0.parquet", 10
    )
    shard(tmp_path / "in" / "1.parquet", range(30, 50), kind=pa.nulls(20), late=["z"] * 20)
    table = read_table(tmp_path / "in")
    order = np.random.default_rng(0).permutation(50)[:45]
    for rows in (np.arange(50), order):
        write_table(table.select(rows), tmp_path / "out.parquet", tmp_path / "in")
        found = pq.read_table(tmp_path / "out.parquet")
        whole = pa.concat_tables(
            [pq.ParquetFile(tmp_path / "in" / f"{i}.parquet").read() for i in range(2)],
            promote_options="default",
        )
        names = [*whole.column_names]
        assert found.column_names == names == ["sku", "label", "image", *others, "late"]
        for name in {*others, "sku", "late"}:
            assert found.schema.field(name).type == whole.schema.field(name).type
            assert found[name].to_pylist() == whole[name].take(pa.array(rows)).to_pylist()
        features = json.loads(found.schema.metadata[b"huggingface"])["info"]["features"]
        assert features["kind"] == {"_type": "ClassLabel", "names": ["x"]} and "gone" not in features
        assert [read_table(tmp_path / "out.parquet").images.read(i) for i in (0, 44)] == [
            str(i).encode() for i in rows[[0, 44]]
        ]


def test_shards_that_differ_lose_a_column_and_say_so(tmp_path, caplog):
    (tmp_path / "in").mkdir()
    shard(tmp_path / "in" / "0.parquet", range(3), price=[1, 2, 3])
    shard(tmp_path / "in" / "1.parquet", range(3, 6), price=["4", "5", "6"])
    write_table(read_table(tmp_path / "in"), tmp_path / "out.parquet")
    assert pq.read_schema(tmp_path / "out.parquet").names == ["sku", "label", "image"]
    assert caplog.messages == [
        f"{tmp_path / 'out.parquet'}: these columns of the input cannot be carried along: price"
    ]


def test_a_row_group_is_read_once(tmp_path, monkeypatch):
    shard(tmp_path / "in.parquet", range(700))
    table, read, seen = read_table(tmp_path / "in.parquet"), pq.ParquetFile.read_row_group, []

    def counted(self, group, columns, **options):
        seen.append((group, *columns))
        return read(self, group, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    write_table(table.select(np.arange(0, 700, 3)), tmp_path / "out.parquet")
    assert [group for group, *columns in seen if columns == ["sku"]] == list(range(100))
