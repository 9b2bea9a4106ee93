"""Where commands read and write: nothing that is read is lost, nothing lands where nobody looks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prism_dml.data import read_table


@pytest.fixture
def at_home(tmp_path, monkeypatch, run_folder, image_folder):
    """A home with a run and photos in it, and another folder at hand."""
    home = tmp_path / "home"
    shutil.copytree(run_folder, home / "run")
    shutil.copytree(image_folder, home / "photos")
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path / "here")
    return home


def test_the_home_folder_is_known_wherever_a_path_stands(prism, at_home):
    """As in --out=~/run, which a shell leaves as it is, and in YAML."""
    Path("train.yaml").write_text("out: ~/runs/a\n", encoding="utf-8")
    tiny = ("--steps", "1", "--image-size", "16", "--classes-per-batch", "2")
    for command in (
        ("train", "~/photos", "--config", "train.yaml", *tiny),
        ("embed", "~/run", "~/photos", "--out=~/e.parquet"),
        ("audit", "~/e.parquet", "--out=~/audit"),
        ("index", "~/run", "~/photos", "--out=~/i"),
        ("search", "~/run", "~/i", "~/photos/test/fork", "--json=~/found.json"),
        ("evaluate", "~/run", "~/photos", "--json=~/numbers.json"),
    ):
        status, _, error = prism(*command)
        assert status == 0, f"{command}: {error}"
    assert [path.name for path in Path().iterdir()] == ["train.yaml"]
    made = ("runs/a/run.json", "e.parquet", "audit/report.html", "i", "found.json", "numbers.json")
    assert all((at_home / name).exists() for name in made)


def test_an_audit_writes_over_nothing_that_it_reads(prism, run_folder, image_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [f"{image_folder}/test/{name}/{i}.png,{name},mine" for name in ("fork", "knife") for i in range(5)]
    Path("issues.csv").write_text("\n".join(["path,label,note", *rows, ""]), encoding="utf-8")
    assert prism("embed", run_folder, image_folder, "--out", "e/issues.parquet")[0] == 0
    shutil.copytree(image_folder / "test", "p/report_images")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    for *arguments, out in (
        (run_folder, "issues.csv", "."),
        ("e/issues.parquet", "e"),
        (run_folder, "p/report_images", "p"),
        (run_folder, image_folder, "p"),
    ):
        status, _, error = prism("audit", *arguments, "--out", out)
        assert status == 2 and error.count("\n") == 1, error
        assert "never overwritten" in error or "would be replaced" in error
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_an_export_is_no_part_of_the_run(prism, run_folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    (weights,) = run.glob("model/*.safetensors")
    status, _, error = prism("export", run, "--format", "safetensors", "--out", weights)
    assert status == 2 and "never overwritten" in error
    assert weights.read_bytes() == (run_folder / "model" / weights.name).read_bytes()


@pytest.mark.parametrize("option", ["--json", "--sheet"])
def test_a_folder_in_the_place_of_a_file_is_told_before_the_work(
    prism, run_folder, image_folder, tmp_path, monkeypatch, option
):
    assert prism("index", run_folder, image_folder, "--out", tmp_path / "i")[0] == 0
    monkeypatch.setattr("prism_dml.cli.embed.embed_table", None)  # not to be called
    monkeypatch.setattr("prism_dml.cli.evaluate.embed_table", None)
    (tmp_path / "x.png").mkdir()
    query = image_folder / "test" / "fork" / "0.png"
    for asked in (("search", run_folder, tmp_path / "i", query), ("evaluate", run_folder, image_folder)):
        if asked[0] == "search" or option == "--json":
            status, _, error = prism(*asked, option, tmp_path / "x.png")
            assert status == 2 and error.count("\n") == 1
            assert "x.png cannot be written: a folder is there" in error


def test_a_file_url_of_another_machine_is_not_another_folder(prism, image_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(image_folder.parent)
    for url in (f"file://{image_folder.name}", "file://"):
        status, _, error = prism(
            "corrupt", url, "--kind", "pair", "--rate", "0.5", "--out", tmp_path / "w.csv"
        )
        assert status == 2 and "file:///folder" in error and not (tmp_path / "w.csv").exists()
    assert len(read_table(f"file://localhost{image_folder}")) == len(read_table(image_folder))


def test_shards_in_capitals_are_shards(image_folder, tmp_path):
    from prism_dml.data import write_table

    for name in ("a.parquet", "b.parquet"):
        write_table(read_table(image_folder), tmp_path / name)
    (tmp_path / "b.parquet").rename(tmp_path / "B.PARQUET")
    assert len(read_table(tmp_path)) == 2 * len(read_table(image_folder))


def test_what_is_found_is_said_though_a_picture_of_it_is_gone(
    prism, run_folder, tmp_path, image_folder, caplog
):
    photos, sheet = tmp_path / "photos", tmp_path / "sheet.png"
    shutil.copytree(image_folder, photos)
    assert prism("index", run_folder, photos, "--out", tmp_path / "i")[0] == 0
    (photos / "test" / "fork" / "1.png").write_bytes(b"no image")
    query = photos / "test" / "fork" / "0.png"
    status, said, _ = prism(
        "search", run_folder, tmp_path / "i", query, "--matches", "40", "--sheet", sheet, "--json", "-"
    )
    assert status == 0 and "test/fork/1.png" in said
    with Image.open(sheet) as drawn:
        assert min(drawn.size) > 0
    assert "not on the sheet: 'test/fork/1.png': " in caplog.text


def test_one_readable_class_is_no_measure(prism, run_folder, image_folder, tmp_path):
    shutil.copytree(image_folder / "test", tmp_path / "test")
    for file in (tmp_path / "test" / "knife").glob("*"):
        file.write_bytes(b"no image")
    status, _, error = prism("evaluate", run_folder, tmp_path / "test", "--max-unreadable", "0.6")
    assert status == 2 and "2 classes or more are needed, the data has 1: fork" in error


def test_a_reader_that_has_seen_enough_is_no_failure(run_folder, image_folder):
    """A table that is longer than a pipe holds; nobody reads it."""
    code = "import sys; from prism_dml.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "evaluate", str(run_folder), str(image_folder)]
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, timeout=100)
    assert done.returncode == 0, done.stderr


def test_a_run_is_called_after_all_of_its_folder(prism, image_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("p-1.0", "p-1.5"):
        shutil.copytree(image_folder, name)
        tiny = ("--steps", "1", "--image-size", "16", "--classes-per-batch", "2")
        assert prism("train", name, *tiny)[0] == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["p-1.0", "p-1.5"]


@pytest.mark.parametrize("content", ["", "# steps: 3\n", "- steps\n"])
def test_a_file_without_options_is_told(prism, tmp_path, content):
    (tmp_path / "c.yaml").write_text(content, encoding="utf-8")
    status, _, error = prism("train", "x", "--config", tmp_path / "c.yaml")
    assert status == 2 and "--config" in error and "NAME: VALUE" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "command", ["train loop", "audit {run} loop --out a", "embed {run} {photos} --out loop"]
)
def test_a_link_to_itself_is_one_line(prism, run_folder, image_folder, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    arguments = [word.format(run=run_folder, photos=image_folder) for word in command.split()]
    status, _, error = prism(*arguments)
    assert status == 2 and "loop" in error and error.count("\n") == 1


@pytest.mark.parametrize("name", ["paths", "classes"])
def test_names_that_are_no_list_are_one_line(prism, tmp_path, name):
    labels = np.zeros(3, int) if name == "classes" else np.array(["a", "b", "b"])
    np.savez(tmp_path / "e.npz", embeddings=np.eye(3), labels=labels, **{name: np.array("a")})
    status, _, error = prism("audit", tmp_path / "e.npz", "--out", tmp_path / "a")
    assert status == 2 and f"{name} must be of shape (N,)" in error and error.count("\n") == 1
