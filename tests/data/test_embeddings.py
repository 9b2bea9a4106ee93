import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from prism_dml.data import SCORES, BytesImages, Embedded, ImageTable, read_embeddings, write_embeddings
from prism_dml.data import embeddings as module

VECTORS = np.array([[1.0, 2.0], [3.0, 4.0]])


@pytest.mark.parametrize(
    ("arrays", "labels", "paths"),
    [
        ({"labels": ["b", "a"]}, ["b", "a"], ["#0", "#1"]),
        ({"labels": [7, 3]}, ["7", "3"], ["#0", "#1"]),
        ({"labels": [1, 0], "classes": ["x", "y"], "paths": ["p", "q"]}, ["y", "x"], ["p", "q"]),
    ],
)
def test_npz(tmp_path, arrays, labels, paths):
    np.savez(tmp_path / "e.npz", embeddings=VECTORS, **arrays)
    found = read_embeddings(tmp_path / "e.npz")
    assert found.vectors.tolist() == VECTORS.tolist()
    assert (found.labels, found.paths) == (labels, paths)


@pytest.mark.parametrize("type_", [pa.list_(pa.float64()), pa.list_(pa.float32(), 2)])
def test_parquet(tmp_path, type_):
    column = pa.array(VECTORS.tolist(), type=type_)
    pq.write_table(pa.table({"embedding": column, "label": [5, 6]}), tmp_path / "e.parquet")
    found = read_embeddings(tmp_path / "e.parquet")
    assert found.vectors.tolist() == VECTORS.tolist()
    assert (found.labels, found.paths) == (["5", "6"], ["#0", "#1"])


@pytest.mark.parametrize(
    "type_", [pa.list_(pa.int8()), pa.large_list(pa.float64()), pa.list_(pa.float32(), 2)]
)
def test_embeddings_in_several_chunks(tmp_path, monkeypatch, type_):
    """Some are slices, or empty."""
    whole = pa.array([[7, 7], *VECTORS.tolist()], type_)
    chunks = [whole.slice(1, 1), whole.slice(0, 0), whole.slice(1, 2)]
    rows = pa.table({"embedding": pa.chunked_array(chunks), "label": ["a", "b", "c"]})
    monkeypatch.setattr(module.pq, "read_table", lambda _: rows)
    found = read_embeddings(tmp_path / "e.parquet").vectors
    assert found.dtype == np.float32 and found.tolist() == [[1, 2], [1, 2], [3, 4]]


def test_more_numbers_than_one_array_of_lists_can_hold(tmp_path, monkeypatch):
    """2^31 and one: of what they say only that one row is shorter is looked at here, which takes no memory."""
    million = pa.array([np.zeros(2**20, np.int8)], pa.list_(pa.int8()))
    lists = pa.chunked_array([*[million] * 2**11, pa.array([[1]], million.type)])
    rows = pa.table({"embedding": lists, "label": ["a"] * len(lists)})
    monkeypatch.setattr(module.pq, "read_table", lambda _: rows)
    with pytest.raises(ValueError, match="every row must hold as many numbers as the others"):
        read_embeddings(tmp_path / "e.parquet")


def test_texts_are_written_with_offsets_that_reach_beyond_2_gb(tmp_path):
    table = ImageTable(BytesImages([b""] * 2), ["p", "q"], np.array([1, 0]), ["a", "b"], np.array([-1, 0]))
    write_embeddings(Embedded(torch.tensor(VECTORS).float(), table), tmp_path / "e.parquet")
    schema = pq.read_schema(tmp_path / "e.parquet")
    assert {schema.field(name).type for name in ("path", "label", "clean_label")} == {pa.large_string()}
    found = read_embeddings(tmp_path / "e.parquet")
    assert (found.paths, found.labels, found.vectors.tolist()) == (["p", "q"], ["b", "a"], VECTORS.tolist())


def test_scores_beside_the_embeddings(tmp_path):
    columns = {"embedding": VECTORS.tolist(), "label": ["a", "b"], "path": ["p", "q"]}
    scores = {"label_score": [0.25, None], "suggested_label": ["b", None], "suggested_score": [0.5, None]}
    pq.write_table(pa.table(columns | scores), tmp_path / "e.parquet")
    found = read_embeddings(tmp_path / "e.parquet").scores
    assert list(found.columns) == list(SCORES)
    assert found["label_score"].tolist()[0] == 0.25 and np.isnan(found["label_score"][1])
    assert found["suggested_label"][0] == "b" and found["suggested_score"][0] == 0.5
    assert found.isna().to_numpy().tolist() == [[False] * 3, [True] * 3]
    for without in scores:  # a part of them says nothing
        rest = {name: column for name, column in (columns | scores).items() if name != without}
        pq.write_table(pa.table(rest), tmp_path / "e.parquet")
        assert read_embeddings(tmp_path / "e.parquet").scores is None
    pq.write_table(pa.table(columns | scores | {"label_score": ["high", "low"]}), tmp_path / "e.parquet")
    with pytest.raises(ValueError, match="e.parquet: label_score and suggested_score must be numbers"):
        read_embeddings(tmp_path / "e.parquet")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"embeddings": VECTORS}, "no array 'labels'"),
        ({"labels": [1, 2]}, "no array 'embeddings'"),
        ({"embeddings": VECTORS, "labels": [1]}, "2 embeddings, 1 labels"),
        ({"embeddings": VECTORS[0], "labels": [1, 2]}, "of shape \\(N, D\\)"),
        ({"embeddings": VECTORS * np.nan, "labels": [1, 2]}, "not finite"),
        (
            {"embeddings": VECTORS, "labels": [0, 2], "classes": ["a", "b"]},
            "labels from 0 to 2, but 2 classes",
        ),
        ({"embeddings": VECTORS, "labels": [[0], [2]]}, "labels must be of shape"),
        (
            {"embeddings": VECTORS, "labels": [0.0, 1.0], "classes": ["a", "b"]},
            "must be integers, not float64",
        ),
        ({"embeddings": VECTORS + 1j, "labels": [1, 2]}, "must be numbers of shape .* not complex128"),
        ({"embeddings": VECTORS, "labels": [1, np.nan]}, "e.npz, row 1: no label"),
        ({"embeddings": VECTORS, "labels": np.array([1, "a"], dtype=object)}, "not a readable .npz"),
    ],
)
def test_npz_that_does_not_fit(tmp_path, arrays, message):
    np.savez(tmp_path / "e.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read_embeddings(tmp_path / "e.npz")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [1]}, "no column 'embedding'"),
        ({"embedding": [1.0], "label": [1]}, "lists of numbers"),
        ({"embedding": [{"x": 1.0}], "label": [1]}, "lists of numbers"),
        ({"embedding": [[1.0]], "label": pa.array([None], pa.string())}, "e.parquet, row 0: no label"),
        ({"embedding": [[1.0]] * 2, "label": ["a", " "]}, "e.parquet, row 1: no label"),
        ({"embedding": [[1.0], [1.0, 2.0]], "label": [1, 2]}, "as many numbers as the others"),
        ({"embedding": [["a"]], "label": [1]}, "must be numbers, not string"),
        ({"embedding": [[1e99]], "label": [1]}, "not finite"),
        ({"embedding": [[1.0, None]], "label": [1]}, "not finite"),
        ({"embedding": pa.array([], pa.list_(pa.float32())), "label": pa.array([], pa.string())}, "as many"),
    ],
)
def test_parquet_that_does_not_fit(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "e.parquet")
    with pytest.raises(ValueError, match=message):
        read_embeddings(tmp_path / "e.parquet")


def test_names_that_are_no_text(tmp_path):
    bad = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.array([0, 1], pa.int32()).buffers()[1], pa.py_buffer(b"\xe2")]
    )
    pq.write_table(pa.table({"embedding": [[1.0]], "label": bad}), tmp_path / "e.parquet")
    with pytest.raises(ValueError, match="e.parquet: not a readable parquet file: .*utf-8"):
        read_embeddings(tmp_path / "e.parquet")


@pytest.mark.parametrize("name", ["e.npz", "e.parquet"])
def test_files_that_are_something_else(tmp_path, name):
    for content in (b"", b"not this"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="not a readable"):
            read_embeddings(tmp_path / name)
    with pytest.raises(ValueError, match=r"must be \.npz or \.parquet"):
        read_embeddings(tmp_path / "e.txt")


def test_names_in_bytes_are_text(tmp_path):
    names = ["caf\u00e9".encode(), b"tea"]
    np.savez(tmp_path / "e.npz", embeddings=VECTORS, labels=names, paths=names)
    columns = {"embedding": VECTORS.tolist(), "label": pa.array(names, pa.binary()), "path": names}
    pq.write_table(pa.table(columns), tmp_path / "e.parquet")
    for file in ("e.npz", "e.parquet"):
        found = read_embeddings(tmp_path / file)
        assert found.labels == found.paths == ["caf\u00e9", "tea"]
    np.savez(tmp_path / "e.npz", embeddings=VECTORS, labels=[b"\xe2", b"a"])
    pq.write_table(pa.table(columns | {"label": [b"\xe2", b"a"]}), tmp_path / "e.parquet")
    for file, name in (("e.npz", "labels"), ("e.parquet", "label")):
        with pytest.raises(ValueError, match=f"{file}: {name} must be UTF-8"):
            read_embeddings(tmp_path / file)


def test_a_sample_without_a_path_has_its_number(tmp_path):
    columns = {"embedding": VECTORS.tolist(), "label": ["a", "b"], "path": ["p", None]}
    pq.write_table(pa.table(columns), tmp_path / "e.parquet")
    assert read_embeddings(tmp_path / "e.parquet").paths == ["p", "#1"]


@pytest.mark.parametrize("name", ["e.npz", "e.parquet"])
def test_the_model_is_told(tmp_path, name):
    table = ImageTable(BytesImages([b""] * 2), ["p", "q"], np.array([1, 0]), ["a", "b"])
    for model in ("sha256:0", None):
        write_embeddings(Embedded(torch.tensor(VECTORS).float(), table), tmp_path / name, model)
        assert read_embeddings(tmp_path / name).model == model
