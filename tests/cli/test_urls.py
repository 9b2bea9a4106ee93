"""Commands take their data by URL, and a URL comes through as it was typed."""

import json

import fsspec
import pytest


@pytest.fixture
def url(prism, image_folder, tmp_path):
    """URL of a shard in memory with the images of the folder."""
    out = tmp_path / "noisy.parquet"
    assert prism("corrupt", image_folder, "--kind", "symmetric", "--rate", 0.5, "--out", out)[0] == 0
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe("/shop/photos/data/shard-0.parquet", out.read_bytes())
    yield "memory://shop/photos"
    filesystem.rm("/shop", recursive=True)


def test_commands_from_training_to_search(prism, url, image_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ("--steps", 2, "--embedding-dim", 4, "--classes-per-batch", 2, "--validation", 0)
    status, shown, error = prism("train", url, *options)
    assert status == 0, error
    run = tmp_path / "runs" / "photos"
    assert f"prism evaluate runs/photos {url}" in shown and run.is_dir()
    status, shown, error = prism("evaluate", run, url, "--json", "-")
    assert status == 0, error
    assert json.loads(shown)["data"] == url
    for command in (
        ("embed", run, url, "--out", "e.npz"),
        ("embed", run, url, "--out", "parts", "--batch-size", 7, "--rows-per-part", 10),
        ("audit", run, url, "--out", "audit"),
        ("audit", "parts", url, "--out", "audit"),
        ("apply", url, "audit/suggestions.json", "--out", "better.parquet"),
        ("index", run, url, "--out", "index"),
        ("search", run, "index", image_folder / "test" / "fork" / "0.png", "--sheet", "sheet.png"),
    ):
        status, _, error = prism(*command)
        assert status == 0, f"{command}: {error}"
    assert "photos" in (tmp_path / "audit" / "report.html").read_text()
    assert json.loads((tmp_path / "audit" / "summary.json").read_text())["data"] == url


@pytest.mark.parametrize("command", ["train", "corrupt", "apply"])
def test_a_url_is_printed_as_it_was_typed(prism, tmp_path, command):
    url = "memory://not/there/x.parquet"
    (tmp_path / "c.json").write_text('{"version": 1, "fingerprint": "", "corrections": []}')
    more = {
        "train": ("--out", tmp_path / "run"),
        "corrupt": ("--kind", "pair", "--rate", 0.1, "--out", tmp_path / "o.csv"),
        "apply": (tmp_path / "c.json", "--out", tmp_path / "o.csv"),
    }[command]
    status, _, error = prism(command, url, *more)
    assert (status, error) == (2, f"prism: error: {url}: no such file or folder\n")


@pytest.mark.parametrize("command", ["train", "evaluate", "embed", "audit", "index", "corrupt", "apply"])
def test_help_says_that_urls_work(command, capsys):
    from prism_dml.cli.main import main

    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "URL" in capsys.readouterr().out
