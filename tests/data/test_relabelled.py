"""Embeddings without images: known from data, and written with labels corrected."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prism_dml.data import (
    Correction,
    Corrections,
    apply_corrections,
    embeddings_table,
    holds_embeddings,
    read_embeddings,
    read_table,
    table_fingerprint,
    write_relabelled,
)
from prism_dml.data.parts import Job, open_job, write_part

VECTORS = np.arange(6, dtype=np.float32).reshape(3, 2) / 10
COLUMNS = {
    "sku": ["007", "008", "009"],
    "label": [1, 2, 1],
    "price": pa.array([0.1, None, 2.0], pa.float32()),
    "path": ["x.png", "y, z.png", "z.png"],
    "clean_label": pa.array([1, 2, None]),
    "tags": [["t"]] * 3,
    "embedding": VECTORS.tolist(),
    "label_score": [0.1, 0.9, 0.9],
}


def corrected(file):
    """The first sample is of a new class, the second is dropped."""
    table = embeddings_table(file)
    first, second = ((i, table.paths[i], table.classes[table.labels[i]]) for i in range(2))
    made = [Correction(*first, "relabel", "new"), Correction(*second, "drop", None)]
    return apply_corrections(table, Corrections(table_fingerprint(table), made)).table


def make_parquet(tmp_path):
    pq.write_table(pa.table(COLUMNS), tmp_path / "e.parquet")
    return tmp_path / "e.parquet"


def test_nothing_that_is_said_of_the_old_labels_stays(tmp_path):
    rows = pa.table(
        {name: COLUMNS[name] for name in ("path", "label", "embedding")} | {"is_noisy": [True] * 3}
    )
    said = {"huggingface": '{"info": {"features": {"label": {"_type": "ClassLabel", "names": ["x"]}}}}'}
    pq.write_table(rows.replace_schema_metadata(said), tmp_path / "e.parquet")
    write_relabelled(corrected(tmp_path / "e.parquet"), tmp_path / "out.parquet", tmp_path / "e.parquet")
    schema = pq.read_schema(tmp_path / "out.parquet")
    assert schema.names == ["path", "label", "embedding"] and not schema.metadata


def make_npz(tmp_path):
    np.savez(tmp_path / "e.npz", embeddings=VECTORS, labels=[1, 2, 1])
    return tmp_path / "e.npz"


def make_parts(tmp_path):
    job = Job("model", "data", None, 2, 3, 2)
    open_job(tmp_path / "parts", job)
    rows = pa.table({"path": ["x", "y", "z"], "label": ["1", "2", "1"], "embedding": VECTORS.tolist()})
    for part in range(job.num_parts):
        write_part(tmp_path / "parts", job, part, rows.slice(2 * part, 2), [])
    return tmp_path / "parts"


def test_a_list_gets_all_that_is_text_or_numbers(tmp_path, caplog):
    file = make_parquet(tmp_path)
    write_relabelled(corrected(file), tmp_path / "out.csv", file)
    assert (tmp_path / "out.csv").read_text() == (
        "sku,label,price,path,clean_label,is_noisy\n007,new,0.1,x.png,1,true\n009,1,2,z.png,,true\n"
    )
    assert caplog.messages == [f"{tmp_path / 'out.csv'}: no list can hold these columns of the input: tags"]
    assert len(read_table(tmp_path / "out.csv")) == 2


def test_parquet_keeps_the_embeddings(tmp_path):
    file = make_parquet(tmp_path)
    write_relabelled(corrected(file), tmp_path / "out.parquet", file)
    rows, found = pq.read_table(tmp_path / "out.parquet"), read_embeddings(tmp_path / "out.parquet")
    assert rows.column_names == [*list(COLUMNS)[:-1], "is_noisy"]
    assert rows["sku"].to_pylist() == ["007", "009"] and rows["tags"].to_pylist() == [["t"]] * 2
    assert (found.labels, found.paths) == (["new", "1"], ["x.png", "z.png"])
    assert (found.vectors == VECTORS[[0, 2]]).all()


@pytest.mark.parametrize(("make", "paths"), [(make_npz, ["#0", "#2"]), (make_parts, ["x", "z"])])
def test_npz_and_parts(tmp_path, make, paths):
    file = make(tmp_path)
    assert holds_embeddings(file)
    table = corrected(file)
    write_relabelled(table, tmp_path / "out.csv", file)
    assert (tmp_path / "out.csv").read_text() == f"path,label\n{paths[0]},new\n{paths[1]},1\n"
    write_relabelled(table, tmp_path / "out.parquet", file)
    found = read_embeddings(tmp_path / "out.parquet")
    assert (found.labels, found.paths) == (["new", "1"], paths)
    assert (found.vectors == VECTORS[[0, 2]]).all()


def test_arrays_that_are_left_out_are_named(tmp_path, caplog):
    np.savez(tmp_path / "e.npz", embeddings=VECTORS, labels=[1, 2, 1], clean_labels=[1, 1, 1], sku=[7, 8, 9])
    write_relabelled(corrected(tmp_path / "e.npz"), tmp_path / "out.csv", tmp_path / "e.npz")
    assert caplog.messages == [
        f"{tmp_path / 'e.npz'}: these arrays cannot be carried along: clean_labels, sku"
    ]


def test_the_input_is_never_overwritten(tmp_path):
    file, folder = make_parquet(tmp_path), make_parts(tmp_path)
    before = file.read_bytes()
    with pytest.raises(ValueError, match="it is the input"):
        write_relabelled(corrected(file), file, file)
    with pytest.raises(ValueError, match="it would become a part of the input"):
        write_relabelled(corrected(folder), folder / "part-00000.parquet", folder)
    with pytest.raises(ValueError, match=r"must be a \.csv or a \.parquet"):
        write_relabelled(corrected(file), tmp_path / "e.npz", file)
    assert file.read_bytes() == before


def test_images_with_embeddings_are_images(tmp_path):
    image = [{"bytes": b"", "path": "x"}]
    pq.write_table(pa.table({"image": image, "label": ["a"], "embedding": [[1.0]]}), tmp_path / "e.parquet")
    assert not holds_embeddings(tmp_path / "e.parquet")
    assert not holds_embeddings(tmp_path / "none.parquet") and not holds_embeddings(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": "of something else"}')
    assert not holds_embeddings(tmp_path)
