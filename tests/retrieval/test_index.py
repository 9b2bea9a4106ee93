import json

import numpy as np
import pandas as pd
import pytest

from prism_dml.retrieval import build_index, choose_kind, load_index, nearest_neighbours, save_index


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
