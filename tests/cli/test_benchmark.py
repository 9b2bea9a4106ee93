"""A miniature grid through the shell."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import timm
import torch
from filelock import FileLock
from safetensors.torch import save_file

from prism_dml.benchmark import shipped_protocols

PROTOCOL = """
data: [{name: tiny, path: "my photos"}]
recipe:
  image_size: 16
  embedding_dim: 4
  steps: 3
  classes_per_batch: 3
  samples_per_class: 2
  lr_warmup: 0
  validation: 0
  workers: 0
rows:
  - {name: MCL, method: mcl}
  - {name: Broken, method: contrastive, settings: {lr: 1e30, max_bad_steps: 1}}
  - {name: Oracle, method: oracle}
grid:
  - {noise: symmetric, rate: 0.3, seeds: [0, 1], rows: [MCL, Oracle]}
  - {noise: symmetric, rate: 0.3, rows: [Broken]}
"""
CODE = "import sys; from prism_dml.cli.main import main; sys.exit(main())"


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-c", CODE, "benchmark", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def records(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_help_names_every_protocol_that_comes_with_prism(prism, capsys):
    with pytest.raises(SystemExit, match="0"):
        prism("benchmark", "--help")
    said = capsys.readouterr().out.replace(",", " ").replace(";", " ").split()
    assert not set(shipped_protocols()) - set(said)


def test_a_folder_that_may_not_be_written_to_is_refused(prism, image_folder, tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    protocol, out = tmp_path / "p.yaml", tmp_path / "out"
    protocol.write_text(PROTOCOL, encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "touch", refused)
        code, _, said = prism("benchmark", protocol, "--out", out, "--data-root", image_folder.parent)
    assert code == 2
    assert said == f"prism: error: {out / 'results.jsonl'} cannot be written: Permission denied\n"
    assert not list(out.iterdir()), "nothing was begun"


def test_one_process_at_a_time_in_a_folder(prism, image_folder, tmp_path):
    protocol, out = tmp_path / "p.yaml", tmp_path / "out"
    protocol.write_text(PROTOCOL, encoding="utf-8")
    out.mkdir()
    with FileLock(out / ".lock"):
        code, _, said = prism("benchmark", protocol, "--out", out, "--data-root", image_folder.parent)
    assert code == 2 and said.splitlines() == [
        f"prism: error: another process is at work in {out} and holds its .lock: wait for it, or take another folder"
    ]
    assert not (out / "results.jsonl").exists()


def test_runs_on_a_frozen_backbone_leave_nothing_but_results(image_folder, tmp_path):
    """Two processes at once wait for the one that embeds the images."""
    torch.manual_seed(123)
    weights, protocol, out = tmp_path / "weights.safetensors", tmp_path / "p.yaml", tmp_path / "out"
    save_file(timm.create_model("resnet10t").state_dict(), weights)
    frozen = f"  backbone: resnet10t\n  weights: {weights}\n  freeze_backbone: true\n"
    text = PROTOCOL.replace("recipe:\n", f"recipe:\n{frozen}").replace("image_size: 16", "image_size: 32")
    protocol.write_text(text.replace("lr: 1e30", "lr: 1e-3"), encoding="utf-8")
    process = start(protocol, "--out", out, "--workers", 2, "--data-root", image_folder.parent)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert [r["error"] for r in records(out / "results.jsonl")] == [None] * 5
    assert not (out / "unfinished").exists()


def test_a_grid_that_is_killed_goes_on_and_what_breaks_leaves_the_rest_alone(image_folder, tmp_path):
    protocol, out = tmp_path / "p.yaml", tmp_path / "out"
    protocol.write_text(PROTOCOL, encoding="utf-8")
    arguments = (protocol, "--out", out, "--workers", 1, "--data-root", image_folder.parent)
    results = out / "results.jsonl"

    process = start(*arguments)
    while process.poll() is None and not (results.exists() and results.read_bytes().count(b"\n")):
        time.sleep(0.02)
    process.kill()
    process.communicate()
    before = len(records(results))
    assert 1 <= before < 5
    with results.open("a", encoding="utf-8") as stream:
        stream.write('{"key": "cut sh')

    process = start(*arguments)
    shown, said = process.communicate(timeout=300)
    assert process.returncode == 2
    assert said.splitlines()[-1].startswith("prism: error: 1 of 5 runs failed, see ")
    assert "tiny, symmetric 30%, seed 1: Oracle: P@1 " in said and "left, about" in said
    assert f"4 of 5 runs are done: {out / 'table.md'}" in shown
    kept = records(results)
    assert sorted((r["row"], r["seed"]) for r in kept) == [
        ("Broken", 0),
        *((m, s) for m in ("MCL", "Oracle") for s in (0, 1)),
    ]
    (broken,) = [r for r in kept if r["error"] is not None]
    assert broken["row"] == "Broken" and "the loss or its gradient" in broken["error"]
    table = (out / "table.md").read_text(encoding="utf-8")
    assert "| MCL | 2 |" in table and "Broken (run): ValueError: the loss or its gradient" in table
    assert f"prism benchmark {protocol} --out {out} --workers 1 --data-root" in table
    assert (out / "plots" / "tiny_symmetric_precision.png").is_file() and not (out / "unfinished").exists()

    protocol.write_text(PROTOCOL.replace("lr: 1e30", "lr: 1e-3"), encoding="utf-8")
    process = start(*arguments, "--json")
    shown, said = process.communicate(timeout=300)
    assert (process.returncode, said.count("\n")) == (0, 1), said  # the broken row alone was run again
    assert json.loads(shown) == {"out": str(out), "runs": 5, "succeeded": 5, "failed": 0}
    assert len(records(results)) == 6


@pytest.mark.parametrize("whole_group", [False, True])
def test_a_signal_stops_the_runs_and_says_how_to_go_on(image_folder, tmp_path, whole_group):
    """Sent to the command, as by Ctrl-C, or to its runs as well, as by timeout(1)."""
    protocol, out = tmp_path / "p.yaml", tmp_path / "out"
    protocol.write_text(PROTOCOL.replace("steps: 3", "steps: 100000"), encoding="utf-8")
    process = start(protocol, "--out", out, "--workers", 1, "--data-root", image_folder.parent)
    while process.poll() is None and not any(
        log.stat().st_size for log in out.glob("unfinished/*/run/metrics.jsonl")
    ):
        time.sleep(0.02)
    if whole_group:
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=100)
    assert process.returncode == (143 if whole_group else 130)
    name = "SIGTERM" if whole_group else "SIGINT"
    assert said == f"prism: {name}: 0 of 5 runs are done; the same command goes on\n"
    assert not (out / "results.jsonl").exists(), "no run has failed"
    assert list(out.glob("unfinished/*/run/checkpoint.safetensors"))


@pytest.mark.parametrize(
    ("protocol", "options", "message"),
    [
        ("quick/nothing", (), "there is no protocol quick/nothing"),
        (PROTOCOL, ("--workers", "0"), "workers must be at least 1"),
        (PROTOCOL.replace("my photos", "no photos"), (), "data set tiny: there is no "),
        (PROTOCOL.replace("  steps: 3", "  weights: no.pth\n  steps: 3"), (), "data set tiny: there is no "),
        (
            PROTOCOL.replace("method: mcl", "method: mlc"),
            (),
            "rows[0]: unknown method 'mlc': did you mean mcl?",
        ),
    ],
)
def test_mistakes_are_one_line(prism, image_folder, tmp_path, protocol, options, message):
    if "\n" in protocol:
        (tmp_path / "p.yaml").write_text(protocol, encoding="utf-8")
        protocol = tmp_path / "p.yaml"
    status, _, error = prism(
        "benchmark", protocol, "--out", tmp_path / "out", "--data-root", image_folder.parent, *options
    )
    assert status == 2
    assert message in error and error.count("\n") == 1


PIXELS = (
    PROTOCOL[: PROTOCOL.index("rows:")]
    + """
rows: [{name: Pixels, method: raw-pixels}, {name: MCL, method: mcl}]
grid: [{noise: none, rows: [Pixels]}]
"""
)


def test_results_of_other_data_are_not_taken_for_ours(prism, image_folder, tmp_path):
    """At the same place; the same ones are, and those that do not say what they are of."""
    (tmp_path / "p.yaml").write_text(PIXELS, encoding="utf-8")
    out, photos = tmp_path / "out", tmp_path / "data" / "my photos"
    shutil.copytree(image_folder, photos)
    asked = ("benchmark", tmp_path / "p.yaml", "--out", out, "--workers", "1", "--data-root", photos.parent)
    assert prism(*asked)[0] == 0
    (before,) = records(out / "results.jsonl")
    assert prism(*asked)[0] == 0 and records(out / "results.jsonl") == [before]
    next(photos.glob("test/*/*.*")).unlink()
    status, _, error = prism(*asked)
    assert status == 2 and error.count("\n") == 1
    assert "data set tiny: " in error and "has runs on other data" in error and "another folder" in error
    del before["fingerprint"]
    (out / "results.jsonl").write_text(json.dumps(before) + "\n", encoding="utf-8")
    assert prism(*asked)[0] == 0


def test_a_run_that_could_not_be_recorded_is_not_lost(prism, image_folder, tmp_path, monkeypatch):
    (tmp_path / "p.yaml").write_text(PIXELS, encoding="utf-8")
    out = tmp_path / "out"
    asked = (
        "benchmark",
        tmp_path / "p.yaml",
        "--out",
        out,
        "--workers",
        "1",
        "--data-root",
        image_folder.parent,
    )
    with monkeypatch.context() as patched:
        patched.setattr("prism_dml.benchmark.grid.append_record", Mock(side_effect=OSError(28, "no space")))
        status, _, error = prism(*asked)
    assert status != 0 and "no space" in error
    (left,) = out.glob("unfinished/*/result.json")
    seconds = json.loads(left.read_text(encoding="utf-8"))["seconds"]
    assert prism(*asked)[0] == 0 and not (out / "unfinished").exists()
    assert [record["seconds"] for record in records(out / "results.jsonl")] == [seconds], "it ran once"


def test_help(prism, capsys):
    with pytest.raises(SystemExit, match="0"):
        prism("benchmark", "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "quick/grocery" in text
        and "--data-root PATH" in text
        and "--out PATH Folder of the results. (required" in text
    )
