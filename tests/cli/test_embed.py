import json
import resource
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from prism_dml import load
from prism_dml.cli import embed as cli
from prism_dml.cli.embed import choose_device
from prism_dml.data import read_image, read_table


@pytest.fixture
def noisy_list(prism, image_folder, tmp_path):
    out = tmp_path / "noisy.csv"
    prism("corrupt", image_folder, "--kind", "symmetric", "--rate", 0.5, "--out", out)
    return out


def expected(run_folder, table):
    """Each image by itself through the public preprocessing."""
    model = load(run_folder)
    with torch.no_grad():
        vectors = [model(model.transform(read_image(table, i))[None])[0] for i in range(len(table))]
    return torch.stack(vectors).numpy()


def test_npz_holds_what_the_model_says(prism, run_folder, noisy_list, tmp_path):
    out = tmp_path / "new" / "e.npz"
    status, shown, _ = prism("embed", run_folder, noisy_list, "--out", out)
    assert (status, shown) == (0, f"28 embeddings of 6 numbers in {out}\n")
    table, saved = read_table(noisy_list), np.load(out)  # no pickle
    # One level of grey of 256, since the cache rounds after resizing.
    assert np.allclose(saved["embeddings"], expected(run_folder, table), atol=0.02)
    assert np.allclose(np.linalg.norm(saved["embeddings"], axis=1), 1, atol=1e-6)
    assert saved["classes"].tolist() == table.classes
    assert saved["paths"].tolist() == table.paths
    assert (saved["labels"] == table.labels).all()
    assert (saved["clean_labels"] == table.clean_labels).all()
    assert [path.name for path in out.parent.iterdir()] == ["e.npz"]


def test_parquet_holds_the_same_with_names(prism, run_folder, noisy_list, tmp_path):
    prism("embed", run_folder, noisy_list, "--out", tmp_path / "e.npz")
    prism("embed", run_folder, noisy_list, "--out", tmp_path / "e.parquet")
    table, rows = read_table(noisy_list), pq.read_table(tmp_path / "e.parquet").to_pydict()
    assert (np.array(rows["embedding"], np.float32) == np.load(tmp_path / "e.npz")["embeddings"]).all()
    assert rows["path"] == table.paths
    assert rows["label"] == [table.classes[k] for k in table.labels]
    assert rows["clean_label"] == [table.classes[k] for k in table.clean_labels]


def test_truth_outside_the_classes_is_empty(prism, run_folder, image_folder, tmp_path):
    noisy, out = tmp_path / "n.csv", tmp_path / "e.parquet"
    kind = ("--kind", "small-cluster", "--rate", 0.34)
    prism("corrupt", image_folder, *kind, "--out", noisy)
    assert prism("embed", run_folder, noisy, "--split", "train", "--out", out)[0] == 0
    assert pq.read_table(out).column("clean_label").null_count == 6


def test_split_and_json(prism, run_folder, image_folder, tmp_path):
    out = tmp_path / "e.npz"
    status, shown, _ = prism("embed", run_folder, image_folder, "--out", out, "--split", "test", "--json")
    assert status == 0
    assert json.loads(shown) == {"out": str(out), "images": 10, "embedding_dim": 6, "unreadable": 0}
    assert np.load(out)["classes"].tolist() == ["fork", "knife"]
    assert "clean_labels" not in np.load(out)


def test_unreadable_images_are_named_and_left_out(prism, run_folder, image_folder, tmp_path):
    (tmp_path / "d" / "a").mkdir(parents=True)
    (tmp_path / "d" / "b").mkdir()
    good = (image_folder / "test" / "fork" / "0.png").read_bytes()
    for place in ("a/0", "a/1", "b/0"):
        (tmp_path / "d" / f"{place}.png").write_bytes(good)
    (tmp_path / "d" / "b" / "bad.png").write_bytes(good[: len(good) // 2])
    options = ("--out", tmp_path / "e.npz")
    status, _, error = prism("embed", run_folder, tmp_path / "d", *options)
    assert status == 2
    assert "prism: error:" in error
    status, shown, _ = prism("embed", run_folder, tmp_path / "d", *options, "--max-unreadable", 0.5)
    assert status == 0
    assert shown.startswith("3 embeddings")
    assert "b/bad.png" not in np.load(tmp_path / "e.npz")["paths"].tolist()


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("e.txt", "--out must end in .parquet or .npz, or be a folder, not 'e.txt'"),
        ("d.parquet", "must not be the data itself"),
    ],
)
def test_bad_output_is_refused_before_any_work(prism, tmp_path, out, message):
    status, _, error = prism("embed", tmp_path, tmp_path / "d.parquet", "--out", tmp_path / out)
    assert status == 2
    assert message in error


# On Python 3.10, zipfile complains once more about the archive that it could not finish when it is thrown away.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["e.npz", "e.parquet"])
def test_a_full_disk_is_one_line_and_leaves_the_old_file(prism, run_folder, image_folder, tmp_path, name):
    out = tmp_path / name
    prism("embed", run_folder, image_folder, "--out", out)
    before = out.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (len(before) // 2, limits[1])
    )  # hits a write as a full disk does
    try:
        status, _, error = prism("embed", run_folder, image_folder, "--out", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 2 and error.count("\n") == 1
    assert f"{out} cannot be written: " in error and "what was there before is whole" in error
    assert out.read_bytes() == before and list(tmp_path.iterdir()) == [out]


def test_a_place_that_cannot_be_written_to_is_found_before_the_work(
    prism, run_folder, image_folder, tmp_path, monkeypatch
):
    """What is there already stays, and nothing is left beside it."""

    def nothing_to_do(*_):
        raise ValueError("embedding")

    monkeypatch.setattr(cli, "embed_table", nothing_to_do)
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "e.npz"
    status, _, error = prism("embed", run_folder, image_folder, "--out", out)
    assert (status, error) == (
        2,
        f"prism: error: {out} cannot be written: {tmp_path / 'file'} is no folder\n",
    )
    (tmp_path / "e.npz").write_text("mine, too")

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "touch", refused)
        status, _, error = prism("embed", run_folder, image_folder, "--out", tmp_path / "e.npz")
    assert status == 2 and "e.npz cannot be written: Permission denied" in error
    status, _, error = prism("embed", run_folder, image_folder, "--out", tmp_path / "e.npz")
    assert (status, error) == (2, "prism: error: embedding\n")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "file": "mine",
        "e.npz": "mine, too",
    }


def test_no_model_there(prism, image_folder, tmp_path):
    status, _, error = prism("embed", tmp_path, image_folder, "--out", tmp_path / "e.npz")
    assert status == 2
    assert "no model in" in error


def test_device():
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto") in ("cpu", "cuda")
    with pytest.raises(ValueError, match="no such device here: abacus"):
        choose_device("abacus")
    with pytest.raises(ValueError, match="the device meta computes nothing"):
        choose_device("meta")


def test_the_data_are_never_written_over_nor_added_to(prism, run_folder, image_folder, tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    prism("corrupt", image_folder, "--kind", "pair", "--rate", 0, "--out", shards / "a.parquet")
    before = (shards / "a.parquet").read_bytes()
    for command, name in (
        (("embed", run_folder, shards, "--out", shards / "a.parquet"), "a.parquet"),
        (("embed", run_folder, shards, "--out", shards / "b.parquet"), "b.parquet"),
        (("embed", run_folder, shards, "--out", shards / "data"), "part-00000.parquet"),
        (("audit", run_folder, shards, "--out", shards), "issues.parquet"),
        (("train", shards, "--out", shards), "embeddings.parquet"),
    ):
        status, _, error = prism(*command)
        assert status == 2
        assert f"{name}: it would become a part of the input" in error
    assert [(file.name, file.read_bytes()) for file in shards.iterdir()] == [("a.parquet", before)]


def test_what_training_has_left_is_not_written_over(prism, run_folder, image_folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    (run / "embeddings.parquet").write_bytes(b"with scores")
    status, _, error = prism("embed", run, image_folder, "--out", run / "embeddings.parquet")
    assert status == 2 and "it is the input, which is never overwritten" in error
    assert (run / "embeddings.parquet").read_bytes() == b"with scores"
    assert prism("embed", run, image_folder, "--out", run / "others.parquet")[0] == 0


def test_nothing_is_written_where_it_would_become_a_class(
    prism, run_folder, image_folder, tmp_path, monkeypatch
):
    before = read_table(image_folder)
    monkeypatch.chdir(image_folder)
    for command in (
        ("audit", run_folder, image_folder, "--out", image_folder / "audit"),
        ("embed", run_folder, image_folder, "--out", image_folder / "train" / "parts"),
        ("embed", run_folder, image_folder, "--out", image_folder / "a" / "b.npz"),
        ("index", run_folder, image_folder, "--out", "idx"),
        ("train", "."),
    ):
        status, _, error = prism(*command)
        assert status == 2 and error.count("\n") == 1, error
        assert "its folder would become a class of the input" in error
    assert sorted(file.name for file in image_folder.iterdir()) == ["test", "train"]
    hidden = image_folder / ".prism" / "audit"
    assert prism("audit", run_folder, image_folder, "--out", hidden)[0] == 0, "nobody reads what is hidden"
    assert read_table(image_folder).paths == before.paths
    shutil.rmtree(image_folder / ".prism")


def test_an_audit_goes_to_a_folder(prism, run_folder, image_folder, tmp_path):
    (tmp_path / "audit").write_text("mine")
    status, _, error = prism("audit", run_folder, image_folder, "--out", tmp_path / "audit")
    assert (status, error) == (2, f"prism: error: --out must be a folder: {tmp_path / 'audit'}\n")
