import json

import faiss
import numpy as np
import pandas as pd
import pytest

from prism_dml.retrieval import (
    build_index,
    choose_kind,
    holds_index,
    load_index,
    nearest_neighbours,
    save_index,
)
from prism_dml.retrieval import index as index_module


def vectors(count=400, dim=16, seed=0):
    """Twenty clusters, as embeddings are."""
    rng = np.random.default_rng(seed)
    return (
        np.repeat(rng.normal(size=(20, dim)), count // 20, axis=0) + 0.4 * rng.normal(size=(count, dim))
    ).astype("f")


def test_flat_is_exact():
    reference, query = vectors(), vectors(20, seed=1) * 7
    similarities, numbers = build_index(reference).search(query, 5)
    expected, indices = nearest_neighbours(query, reference, 5)
    assert np.allclose(similarities, expected, atol=1e-5)
    assert (numbers == indices.numpy()).all()


@pytest.mark.parametrize(("kind", "least"), [("hnsw", 0.97), ("ivf-pq", 0.6)])
def test_approximate_kinds_find_most_of_the_neighbours(kind, least):
    reference, query = vectors(), vectors(20)
    index = build_index(reference, kind)
    similarities, numbers = index.search(query, 10)
    _, expected = nearest_neighbours(query, reference, 10)
    found = np.mean(
        [len(set(a) & set(b)) / 10 for a, b in zip(numbers.tolist(), expected.tolist(), strict=True)]
    )
    assert found >= least
    assert (np.diff(similarities, axis=1) <= 0).all()
    assert index.kind == kind


def recall(dim):
    """Share of the ten nearest that IVF-PQ finds among vectors that lie in no clusters of their own."""
    reference = np.random.default_rng(0).normal(size=(2000, dim)).astype("f")
    index = build_index(reference, "ivf-pq")
    assert index.embedding_dim == dim
    faiss.extract_index_ivf(index.faiss_index).nprobe = 10_000  # so that codes alone decide
    _, numbers = index.search(reference[:200], 10)
    _, expected = nearest_neighbours(reference[:200], reference, 10)
    pairs = zip(numbers.tolist(), expected.tolist(), strict=True)
    return np.mean([len(set(a) & set(b)) / 10 for a, b in pairs])


def test_no_number_of_dimensions_is_coded_badly():
    assert recall(127) > recall(128) - 0.05


@pytest.mark.parametrize(
    ("dim", "padded", "pieces"),
    [(7, 7, 7), (61, 61, 61), (65, 66, 33), (67, 68, 34), (96, 96, 48), (127, 128, 64), (384, 384, 64)],
)
def test_pieces_of_ivf_pq(tmp_path, dim, padded, pieces):
    reference = vectors(dim=dim)
    index = build_index(reference, "ivf-pq")
    inner = faiss.downcast_index(faiss.extract_index_ivf(index.faiss_index))
    assert (inner.d, inner.pq.M) == (padded, pieces)
    assert isinstance(index.faiss_index, faiss.IndexPreTransform) == (padded > dim)
    save_index(index, pd.DataFrame({"path": range(400)}), tmp_path, {})
    again, _, _ = load_index(tmp_path)
    assert again.embedding_dim == dim
    for found, expected in zip(again.search(reference[:9], 5), index.search(reference[:9], 5), strict=True):
        assert (found == expected).all()


def test_kind_by_size():
    assert [choose_kind(n) for n in (1, 50_000, 50_001, 2_000_000, 2_000_001)] == [
        "flat", "flat", "hnsw", "hnsw", "ivf-pq",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf-pq"])
def test_saved_and_loaded(tmp_path, kind):
    reference, rows = vectors(), pd.DataFrame({"path": [f"{i}" for i in range(400)], "label": "é"})
    index = build_index(reference, kind)
    for about in ({"old": 1}, {"data": "d"}):
        save_index(index, rows, tmp_path / "i", about)
    again, its_rows, its_about = load_index(tmp_path / "i")
    assert (again.kind, len(again), again.embedding_dim, its_about) == (kind, 400, 16, {"data": "d"})
    assert its_rows.equals(rows)
    assert (again.search(reference[:3], 5)[1] == index.search(reference[:3], 5)[1]).all()
    assert len(list((tmp_path / "i").iterdir())) == 3


def test_folders_that_hold_an_index(tmp_path):
    assert not holds_index(tmp_path / "none") and not holds_index(tmp_path)
    for name in ("rows-of-shelves.parquet", "index.json"):
        (tmp_path / name).write_text("{}")
        assert not holds_index(tmp_path)
    (tmp_path / "index.json").unlink()
    save_index(build_index(vectors()), pd.DataFrame({"path": range(400)}), tmp_path, {})
    assert holds_index(tmp_path)
    (tmp_path / "index.json").unlink()  # as if killed before the end
    assert holds_index(tmp_path)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build_index(np.zeros((0, 4), "f")), "there are no embeddings"),
        (lambda: build_index(vectors(), "tree"), "unknown kind of index 'tree'"),
        (lambda: build_index(vectors(240), "ivf-pq"), "needs at least 256 embeddings, not 240"),
        (lambda: build_index(vectors() * np.nan), "not finite"),
        (
            lambda: build_index(vectors()).search(vectors(20, 8), 3),
            "embeddings of 16 numbers, the query of 8",
        ),
        (lambda: build_index(vectors()).search(vectors(), 0), "k must be from 1 to 400"),
        (lambda: build_index(vectors()).search(vectors(), 401), "k must be from 1 to 400"),
        (
            lambda: save_index(build_index(vectors()), pd.DataFrame({"a": [1]}), None, {}),
            "1 rows for an index of 400",
        ),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def change_card(folder, **changes):
    card = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(card | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "index.json").unlink(), "no index in"),
        (lambda f: (f / "index.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "index.json").write_text("[]"), "not the description of a Prism index"),
        (lambda f: change_card(f, format_version=9), "format version 9"),
        (lambda f: change_card(f, files=None), "files, sha256 or about is missing"),
        (lambda f: change_card(f, kind=None), "kind, files, sha256 or about is missing"),
        (lambda f: change_card(f, files={}), "cannot be read"),
        (lambda f: next(f.glob("*.faiss")).write_bytes(b"IxFI"), "damaged: its checksum"),
        (lambda f: next(f.glob("*.parquet")).write_bytes(b""), "damaged: its checksum"),
        (lambda f: next(f.glob("*.faiss")).unlink(), "cannot be read: No such file"),
    ],
)
def test_damaged_index_is_one_clear_line(tmp_path, damage, message):
    save_index(build_index(vectors()), pd.DataFrame({"path": range(400)}), tmp_path, {})
    damage(tmp_path)
    with pytest.raises(ValueError, match=message) as refusal:
        load_index(tmp_path)
    assert "\n" not in str(refusal.value)


def test_where_many_are_the_same_every_other_is_found_too(monkeypatch, caplog):
    """Their links to each other leave none to the rest."""
    monkeypatch.setattr(index_module, "FLAT_UP_TO", 1000)
    rows = np.random.default_rng(0).normal(size=(3000, 32)).astype("f")
    rows[::6] = rows[0]
    found = build_index(rows)
    assert found.kind == "flat"
    own = np.setdiff1d(np.arange(3000), np.arange(0, 3000, 6))
    assert (found.search(rows[own], 1)[1][:, 0] == own).all()
    rows[6 * 64 :: 6] += np.random.default_rng(1).normal(size=rows[6 * 64 :: 6].shape)
    assert build_index(rows).kind == "hnsw", "64 are as many as there may be"
    assert not caplog.text
    rows[6 * 64] = rows[0]
    assert build_index(rows, "hnsw").kind == "hnsw"
    assert "65 embeddings are the same: hnsw may not find others; flat does" in caplog.text


def test_other_files_beside_an_index_stay(tmp_path):
    for name in ("rows-of-shelves.parquet", "index-of-books.faiss"):
        (tmp_path / name).write_text("mine")
    rows = pd.DataFrame({"path": range(400)})
    for seed in (0, 1):
        save_index(build_index(vectors(seed=seed)), rows, tmp_path, {})
    assert len(list(tmp_path.iterdir())) == 5
    assert (tmp_path / "rows-of-shelves.parquet").read_text() == "mine"
