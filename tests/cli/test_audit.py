import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from prism_dml.cli import samples as samples_of
from prism_dml.data import read_corrections, read_table, table_fingerprint

SMALL = ["--steps", "6", "--image-size", "16", "--embedding-dim", "8", "--workers", "0"]
SMALL += ["--classes-per-batch", "2", "--samples-per-class", "2"]


@pytest.fixture
def noisy_list(prism, image_folder, tmp_path):
    out = tmp_path / "noisy.csv"
    prism("corrupt", image_folder, "--kind", "symmetric", "--rate", 0.3, "--out", out)
    return out


def embedded_in(monkeypatch):
    """How many images each audit embeds, a list that grows."""
    counts, embed_table = [], samples_of.embed_table

    def counted(model, table, **options):
        counts.append(len(table))
        return embed_table(model, table, **options)

    monkeypatch.setattr(samples_of, "embed_table", counted)
    return counts


def clustered(table, path):
    """Embeddings that tell the true classes: find_label_issues has an easy task."""
    rng = np.random.default_rng(0)
    vectors = np.eye(table.num_classes)[table.clean_labels] + 0.02 * rng.normal(
        size=(len(table), table.num_classes)
    )
    arrays = {"labels": table.labels, "classes": np.array(table.classes), "paths": np.array(table.paths)}
    np.savez(path, embeddings=vectors, **arrays)
    return path


def test_a_run_and_its_data(prism, run_folder, noisy_list, tmp_path):
    out = tmp_path / "audit"
    status, shown, error = prism("audit", run_folder, noisy_list, "--out", out, "--split", "train")
    assert status == 0, error
    assert "of 18 labels look wrong" in shown
    assert f"Review them: {out / 'report.html'}" in shown
    assert {path.name for path in out.iterdir()} == {
        "issues.csv", "issues.parquet", "summary.json", "suggestions.json", "report.html",
    }  # fmt: skip
    whole, rows = read_table(noisy_list), pd.read_parquet(out / "issues.parquet")
    inside = np.flatnonzero(whole.splits == "train")
    assert rows["index"].tolist() == inside.tolist()
    assert rows["path"].tolist() == [whole.paths[i] for i in inside]
    assert rows["given_label"].tolist() == [whole.classes[whole.labels[i]] for i in inside]
    assert rows["label_score"].between(0, 1).all()
    assert len(pd.read_csv(out / "issues.csv")) == 18
    assert json.loads((out / "summary.json").read_text())["fingerprint"] == table_fingerprint(whole)


@pytest.mark.parametrize("method", ["prism-mcl", "refract"])
def test_what_a_run_was_trained_on_is_not_embedded_again(prism, image_folder, tmp_path, monkeypatch, method):
    """Also the classes that were set aside, and by the best model, which need not be the last."""
    run, out, train = tmp_path / "run", tmp_path / "audit", ("--split", "train")
    folder = tmp_path / "of five classes"
    shutil.copytree(image_folder / "train", folder / "train")
    shutil.copytree(image_folder / "test", folder / "train", dirs_exist_ok=True)
    options = [*SMALL, "--steps", 12, "--validation", 0.4, "--validate-every", 1, "--method", method]
    assert prism("train", folder, "--out", run, *options)[0] == 0
    again = tmp_path / "again"
    shutil.copytree(run, again)
    (again / "embeddings.parquet").unlink()
    assert prism("audit", again, folder, *train, "--out", tmp_path / "embedded")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr("prism_dml.cli.samples.embed_table", None)
        assert prism("audit", run, folder, *train, "--out", out)[0] == 0
    expected, found = (pd.read_parquet(folder / "issues.parquet") for folder in (tmp_path / "embedded", out))
    if method == "refract":  # what it has found in training, by the embeddings and by the network, stays
        samples = pd.read_parquet(run / "samples.parquet").set_index("path")
        learned = found["path"].isin(samples.index)
        assert 0 < learned.sum() < len(found)
        mine, theirs = found[learned], samples.loc[found["path"][learned]]
        np.testing.assert_allclose(mine["label_score"], theirs["clean_probability"], rtol=1e-6)
        assert mine["suggested_label"].tolist() == theirs["suggested_label"].tolist()
        assert not np.allclose(mine["label_score"], expected["label_score"][learned], atol=1e-3)
        found, expected = found[~learned], expected[~learned]
    pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-4)

    moved = tmp_path / "relabelled"
    shutil.copytree(folder, moved)
    one, other, *_ = sorted((moved / "train").iterdir())
    image = sorted(one.iterdir())[0]
    image.rename(other / f"from {one.name}.png")
    embedded = embedded_in(monkeypatch)
    assert prism("audit", run, moved, *train, "--out", tmp_path / "moved")[0] == 0
    assert embedded == [len(list((moved / "train").rglob("*.png")))], "other labels, other data"


def test_of_what_a_run_has_not_embedded_only_the_rest_is_embedded(prism, image_folder, tmp_path, monkeypatch):
    """Data with splits: the run has learned from one of them."""
    run, embedded = tmp_path / "run", embedded_in(monkeypatch)
    assert prism("train", image_folder, "--out", run, *SMALL)[0] == 0
    whole = read_table(image_folder)
    inside = set(whole.split("train").paths)
    assert 0 < len(inside) < len(whole)
    assert prism("audit", run, image_folder, "--out", tmp_path / "audit")[0] == 0
    rows = pd.read_parquet(tmp_path / "audit" / "issues.parquet").set_index("path")
    assert embedded == [len(whole) - len(inside)] and list(rows.index) == list(whole.paths)
    assert rows["given_label"].tolist() == [whole.classes[label] for label in whole.labels]
    samples = pd.read_parquet(run / "samples.parquet").set_index("path")
    scores, found = rows.loc[samples.index, "label_score"], samples["clean_probability"]
    # Of one that has a twin under another label an audit knows more, and believes it less.
    assert np.isclose(scores, found, rtol=1e-6).mean() > 0.5 and (scores <= found + 1e-6).all()
    (run / "embeddings.parquet").unlink()
    assert prism("audit", run, image_folder, "--out", tmp_path / "again")[0] == 0
    assert embedded[1:] == [len(whole)]


def test_what_a_run_could_not_read_either_is_left_out(prism, image_folder, tmp_path, monkeypatch, caplog):
    folder, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(image_folder / "train", folder)
    paths = sorted(folder.rglob("*.png"))
    paths[1].write_bytes(b"")
    assert prism("train", folder, "--out", run, *SMALL, "--max-unreadable", 0.2)[0] == 0
    audit = ("audit", run, folder, "--out", tmp_path / "audit", "--max-unreadable")
    embedded = embedded_in(monkeypatch)
    caplog.clear()
    assert prism(*audit, 0.2)[0] == 0
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("skipped") and paths[1].name in said
    rows = pd.read_parquet(tmp_path / "audit" / "issues.parquet")
    assert rows["index"].tolist() == [0, *range(2, len(paths))] and not embedded
    samples = pd.read_parquet(run / "samples.parquet").set_index("path").loc[rows["path"]]
    same = np.isclose(rows["label_score"], samples["clean_probability"], rtol=1e-6)
    assert same.sum() >= len(rows) - 2  # two are alike under different labels, of which an audit knows more

    shutil.rmtree(tmp_path / "audit")
    status, _, error = prism(*audit, 0)
    assert status == 2 and f"1 of {len(paths)} images are unreadable" in error.splitlines()[-1]
    assert not (tmp_path / "audit").exists()
    paths[1].write_bytes(paths[0].read_bytes())  # what can be read now is not left out
    assert prism(*audit, 0.2)[0] == 0 and embedded == [1]
    assert len(pd.read_parquet(tmp_path / "audit" / "issues.parquet")) == len(paths)


def test_how_many_may_be_unreadable_is_a_share_of_all(prism, image_folder, tmp_path, monkeypatch):
    """Also where only the few that the run has not seen are embedded."""
    folder, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(image_folder, folder)
    broken = sorted((folder / "train").rglob("*.png"))[1]
    broken.write_bytes(b"")
    assert prism("train", folder, "--out", run, *SMALL, "--max-unreadable", 0.1)[0] == 0
    for extra in sorted((folder / "test").rglob("*.png"))[2:]:
        extra.unlink()
    embedded, whole = embedded_in(monkeypatch), read_table(folder)
    out = tmp_path / "audit"
    assert prism("audit", run, folder, "--out", out, "--max-unreadable", 1.5 / len(whole))[0] == 0
    assert embedded == [3] and len(pd.read_parquet(out / "issues.parquet")) == len(whole) - 1


def test_what_has_changed_beside_the_training_data_is_embedded_anew(
    prism, image_folder, tmp_path, monkeypatch
):
    folder, run, data = tmp_path / "data", tmp_path / "run", tmp_path / "data.csv"
    shutil.copytree(image_folder, folder)
    rows = pd.DataFrame({"path": sorted(str(path) for path in folder.rglob("*.png"))})
    rows["label"] = [Path(path).parent.name for path in rows["path"]]
    rows["split"] = ["train" if "/train/" in path else "validation" for path in rows["path"]]
    twice = rows[rows["split"] == "train"].iloc[[0]].assign(label=rows["label"].iloc[-1])
    rows = pd.concat([rows, twice])  # one image under two labels
    rows.to_csv(data, index=False)
    assert prism("train", data, "--out", run, *SMALL, "--validation", 0.3)[0] == 0
    embedded = embedded_in(monkeypatch)
    assert prism("audit", run, data, "--out", tmp_path / "audit")[0] == 0
    first = rows.index[rows["split"] == "validation"][0]
    rows.loc[first, "label"] = "another"
    rows.drop(index=rows.index[rows["split"] == "validation"][-1]).to_csv(data, index=False)
    assert prism("audit", run, data, "--out", tmp_path / "changed")[0] == 0
    assert embedded == [2, 3], "the image with two labels; and the one with another label than before"


@pytest.fixture
def coloured(prism, tmp_path):
    """A list of three classes of 30 images in photos/, 20 % of the labels wrong."""
    for name in ("café", "tea pot", "cup"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(30):
            Image.new("RGB", (8, 8), (i, 90, 160)).save(tmp_path / "photos" / name / f"{i}.png")
    noisy_list = tmp_path / "noisy.csv"
    prism("corrupt", tmp_path / "photos", "--kind", "symmetric", "--rate", 0.2, "--out", noisy_list)
    return noisy_list


def test_the_circle_with_embeddings_and_no_person(prism, coloured, tmp_path):
    table = read_table(coloured)
    embeddings = clustered(table, tmp_path / "e.npz")
    out, fixed = tmp_path / "audit", tmp_path / "fixed.csv"
    status, shown, error = prism("audit", embeddings, coloured, "--out", out, "--json")
    assert status == 0, error
    summary = json.loads(shown)
    assert (
        summary["label_issues"]
        == table.is_noisy.sum()
        == len(read_corrections(out / "suggestions.json").items)
    )
    assert prism("apply", coloured, out / "suggestions.json", "--out", fixed)[0] == 0
    assert not read_table(fixed).is_noisy.any()


def test_embeddings_without_data_show_no_images(prism, noisy_list, tmp_path):
    embeddings = clustered(read_table(noisy_list), tmp_path / "e.npz")
    status, _, error = prism("audit", embeddings, "--out", tmp_path / "audit")
    assert status == 0, error
    assert '"sheets":null' in (tmp_path / "audit" / "report.html").read_text(encoding="utf-8")


def test_images_that_cannot_be_read_are_left_out(prism, run_folder, image_folder, tmp_path):
    good = (image_folder / "test" / "fork" / "0.png").read_bytes()
    for place in ("a/0", "a/1", "b/0", "b/1"):
        (tmp_path / "d" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / f"{place}.png").write_bytes(good if place != "a/0" else b"")
    options = ("--out", tmp_path / "audit", "--max-unreadable", 0.5)
    status, _, error = prism("audit", run_folder, tmp_path / "d", *options)
    assert status == 0, error
    assert pd.read_parquet(tmp_path / "audit" / "issues.parquet")["index"].tolist() == [1, 2, 3]


def test_pictures_that_cannot_be_read_are_told_in_a_line(prism, coloured, tmp_path, caplog):
    embeddings = clustered(read_table(coloured), tmp_path / "e.npz")
    shutil.rmtree(tmp_path / "photos")
    assert prism("audit", embeddings, coloured, "--out", tmp_path / "audit")[0] == 0
    (said,) = [record.getMessage() for record in caplog.records]
    pattern = r"(\d+) of \1 images of the page cannot be read, e.g. '(.*)': No such file or directory"
    assert re.fullmatch(pattern, said)[2] in read_table(coloured).paths


def test_classes_that_are_mixed_are_told(prism, tmp_path):
    rng, count = np.random.default_rng(0), 60
    centres = np.linalg.qr(rng.normal(size=(32, 12)))[0].T
    labels = np.arange(12 * count) % 12
    vectors = centres[np.where(labels == 11, 10, labels)] + 0.05 * rng.normal(size=(len(labels), 32))
    names = np.array([f"class {k}" for k in labels])
    np.savez(tmp_path / "e.npz", embeddings=vectors, labels=names)
    status, shown, error = prism("audit", tmp_path / "e.npz", "--out", tmp_path / "audit")
    assert status == 0, error
    ((one, other),) = json.loads((tmp_path / "audit" / "summary.json").read_text())["ambiguous_classes"]
    assert {one, other} == {"class 10", "class 11"}
    assert f"\nClasses mixed as if they were one: {one} and {other}\n" in shown


def test_a_modified_picture_is_embedded_anew(prism, image_folder, tmp_path, monkeypatch, caplog):
    folder, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(image_folder / "train", folder)
    assert prism("train", folder, "--out", run, *SMALL)[0] == 0
    picture, other = sorted(folder.rglob("*.png"))[3], sorted(folder.rglob("*.png"))[-1]
    picture.write_bytes(other.read_bytes())
    later = (run / "embeddings.parquet").stat().st_mtime + 5
    os.utime(picture, (later, later))
    embedded = embedded_in(monkeypatch)
    caplog.clear()
    assert prism("audit", run, folder, "--out", tmp_path / "audit")[0] == 0
    assert embedded == [1]
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("images modified after the run are embedded anew: 1, e.g. ") and said.endswith(
        picture.name
    )
    rows = pd.read_parquet(tmp_path / "audit" / "issues.parquet")
    assert len(rows) == 18 and (rows.loc[[3, 17], "issue"] == "conflicting duplicate").any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{run}",), "DATA is missing"),
        (("{npy}",), "embeddings must be .npz or .parquet, with their labels"),
        (("{npy}", "{data}"), "embeddings must be .npz or .parquet, with their labels"),
        (("{missing}/no",), "no such file or folder"),
        (("{one}",), "2 classes or more are needed, the data has 1"),
        (("{run}", "{lone}"), "2 classes or more are needed, the data has 1"),
        (("{npz}", "--split", "train"), "--split needs DATA"),
        (("{npz}", "{data}", "--split", "no"), "there is no split 'no'"),
        (("{run}", "{whole}", "--split", "no"), "the data has no splits; leave split out"),
        (("{of_whole}", "{whole}", "--split", "no"), "the data has no splits; leave split out"),
        (("{npz}", "--suspects", "0"), "--suspects must be at least 1, not 0"),
        (("{other}", "{data}"), "has the label 'x', but"),
        (("{missing}", "{data}"), "'nowhere.png' is not in the data"),
    ],
)
def test_mistakes_are_one_line(prism, run_folder, image_folder, noisy_list, tmp_path, arguments, message):
    table = read_table(noisy_list)
    places = {"run": run_folder, "npz": clustered(table, tmp_path / "e.npz"), "data": noisy_list}
    places |= {"whole": image_folder / "train", "of_whole": tmp_path / "w.npz"}
    places |= {"npy": tmp_path / "e.npy", "one": tmp_path / "one.npz", "lone": tmp_path / "lone"}
    np.save(places["npy"], np.eye(4))
    np.savez(places["one"], embeddings=np.eye(4), labels=["a"] * 4)
    shutil.copytree(image_folder / "test" / "fork", places["lone"] / "fork")
    prism("embed", run_folder, places["whole"], "--out", places["of_whole"])
    for name, paths in [("other", table.paths), ("missing", ["nowhere.png"] * len(table))]:
        places[name] = tmp_path / f"{name}.npz"
        np.savez(places[name], embeddings=np.ones((len(table), 2)), labels=["x"] * len(table), paths=paths)
    filled = [argument.format(**places) for argument in arguments]
    status, _, error = prism("audit", *filled, "--out", tmp_path / "audit")
    assert status == 2
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "audit").exists()


def test_a_model_in_one_file_and_an_image_that_is_embedded_twice(prism, run_folder, noisy_list, tmp_path):
    model = tmp_path / "m.safetensors"
    assert prism("export", run_folder, "--format", "safetensors", "--out", model)[0] == 0
    assert prism("audit", model, noisy_list, "--out", tmp_path / "a")[0] == 0
    table = read_table(noisy_list)
    twice = table.select([0, *range(len(table))])
    status, _, error = prism(
        "audit", clustered(twice, tmp_path / "e.npz"), noisy_list, "--out", tmp_path / "b"
    )
    assert (status, f"{table.paths[0]!r} is in it twice" in error) == (2, True)
