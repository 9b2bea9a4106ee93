import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prism_dml import load
from prism_dml.data import read_table

QUICK = ("--steps", 4, "--image-size", 16, "--embedding-dim", 4, "--classes-per-batch", 3, "--log-every", 2)


@pytest.fixture
def noisy_list(prism, image_folder, tmp_path):
    out = tmp_path / "noisy.csv"
    prism("corrupt", image_folder, "--kind", "symmetric", "--rate", 0.5, "--out", out)
    return out


def test_trains_from_a_file_of_options_and_says_what_came_out(prism, noisy_list, image_folder, tmp_path):
    options = tmp_path / "options.yaml"
    options.write_text("method: prism-mcl\nnoise_rate: 0.5\nsteps: 2\n", encoding="utf-8")
    run = tmp_path / "run"
    status, shown, _ = prism("train", noisy_list, "--config", options, "--out", run, *QUICK)
    assert status == 0
    settings = json.loads((run / "run.json").read_text(encoding="utf-8"))["settings"]
    assert settings["method"] == "prism-mcl"
    assert (settings["noise_rate"], settings["steps"]) == (0.5, 4)  # the command line wins
    assert f"Trained 4 steps: {run}" in shown
    assert f"Next: prism evaluate {run} {noisy_list}" in shown
    assert "Purity" in shown
    assert re.search(r"Learned from +18 images of 3 classes", shown)
    assert load(run).config["embedding_dim"] == 4
    assert prism("evaluate", run, image_folder)[0] == 0


def test_the_next_command_can_be_pasted(prism, image_folder, tmp_path):
    """With spaces in its paths; without a test the labels are looked at, not the images just learned from."""
    for data, command in ((image_folder, "evaluate"), (image_folder / "train", "audit")):
        status, shown, error = prism("train", data, "--out", tmp_path / f"a run for {command}", *QUICK)
        assert status == 0, error
        program, *arguments = shlex.split(shown.splitlines()[-1].removeprefix("Next: "))
        assert (program, arguments[0]) == ("prism", command)
        assert prism(*arguments)[0] == 0


def test_the_next_command_puts_up_with_as_many_unreadable_images(prism, image_folder, tmp_path):
    data = shutil.copytree(image_folder / "train", tmp_path / "images")
    next(file for file in sorted(data.rglob("*")) if file.is_file()).write_bytes(b"nothing")
    arguments = ("train", data, "--max-unreadable", 0.5, "--out", tmp_path / "run", *QUICK)
    status, shown, error = prism(*arguments)
    assert status == 0, error
    _, *following = shlex.split(shown.splitlines()[-1].removeprefix("Next: "))
    assert following[-2:] == ["--max-unreadable", "0.5"]
    assert prism(*following)[0] == 0


@pytest.mark.parametrize(
    ("options", "images"),
    [
        ((), "17"),
        (("--cache", "stream"), "17"),
        (("--cache", "stream", "--method", "contrastive"), "at most 18"),
    ],
)
def test_what_cannot_be_read_is_not_learned_from(prism, image_folder, tmp_path, options, images):
    """Of a stream it is only known to a method that looks at all images in the end."""
    data = shutil.copytree(image_folder / "train", tmp_path / "images")
    next(file for file in sorted(data.rglob("*")) if file.is_file()).write_bytes(b"nothing")
    arguments = ("train", data, "--max-unreadable", 0.5, "--out", tmp_path / "run", *QUICK, *options)
    status, shown, error = prism(*arguments)
    assert status == 0, error
    assert re.search(rf"Learned from +{images} images of 3 classes", shown), shown


def test_a_finished_run_cannot_be_gone_on_with(prism, image_folder, tmp_path):
    arguments = ("train", image_folder, "--out", tmp_path / "run", *QUICK)
    assert prism(*arguments)[0] == 0
    status, _, error = prism(*arguments, "--resume")
    assert status == 2
    assert f"the run in {tmp_path / 'run'} is finished, after 4 steps" in error


def test_json_and_default_folder(prism, noisy_list, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, shown, _ = prism("train", noisy_list, "--json", *QUICK)
    assert status == 0
    result = json.loads(shown)
    assert result["out"] == str(Path("runs", "noisy"))
    assert result["steps"] == 4
    settings = json.loads(Path("runs", "noisy", "run.json").read_text(encoding="utf-8"))["settings"]
    assert settings["method"] == "refract"
    assert load(tmp_path / "runs" / "noisy")


def test_the_seed_repeats_the_log(prism, noisy_list, tmp_path):
    logs = []
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        assert prism("train", noisy_list, "--out", tmp_path / name, "--seed", seed, *QUICK)[0] == 0
        logs.append((tmp_path / name / "metrics.jsonl").read_text(encoding="utf-8"))
    assert logs[0] == logs[1] != logs[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "magic"), "unknown method 'magic'"),
        (("--method", "co-teaching"), "cannot estimate the noise rate: give it, --noise-rate"),
        (("--noise-rate", "0.3"), "estimates the noise rate itself"),
        (("--noise-rate", "1"), "noise_rate must be auto or in [0, 1)"),
        (("--resume",), "no checkpoint"),
        (("--backbone", "resnet5O"), "resnet50"),
    ],
)
def test_mistakes_are_one_line(prism, noisy_list, tmp_path, options, message):
    status, _, error = prism("train", noisy_list, "--out", tmp_path / "run", *options)
    assert status == 2
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--noise-rate", "0.3"), "estimates the noise rate itself"),
        (("--method", "prism-mcl", "--similarity", "proxy"), "needs a loss with proxies"),
    ],
)
def test_settings_that_a_method_refuses_are_named_before_data_are_read(prism, tmp_path, options, message):
    status, _, error = prism("train", tmp_path / "nowhere", "--out", tmp_path / "run", *options)
    assert status == 2 and message in error and error.count("\n") == 1


def test_a_signal_leaves_a_checkpoint_and_says_how_to_go_on(noisy_list, tmp_path):
    """SIGTERM, as a queue sends it, once the first lines of the log are there."""
    assert len(read_table(noisy_list)) == 28
    run = tmp_path / "run"
    code = (
        "import os, signal, sys, threading, time, pathlib\n"
        "log = pathlib.Path(sys.argv[1], 'metrics.jsonl')\n"
        "def stop():\n"
        "    while not log.exists() or not log.stat().st_size: time.sleep(0.02)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "threading.Thread(target=stop, daemon=True).start()\n"
        "from prism_dml.cli.main import main\n"
        "sys.exit(main(['train', sys.argv[2], '--out', sys.argv[1], *sys.argv[3:]]))"
    )
    options = [str(option) for option in (*QUICK, "--steps", 100_000)]
    command = [sys.executable, "-c", code, str(run), str(noisy_list), *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 143
    assert "--resume goes on from" in result.stderr
    assert result.stderr.startswith("prism: SIGTERM: stopped after step ")
    assert (run / "checkpoint.safetensors").is_file()


def test_help_calls_nothing_required_that_is_not(prism, capsys):
    with pytest.raises(SystemExit, match="0"):
        prism("train", "--help")
    text = capsys.readouterr().out
    assert "--config FILE" in text and "required" not in text


def test_a_run_is_called_after_its_data(prism, image_folder, tmp_path, monkeypatch):
    packed = tmp_path / "packed"
    packed.mkdir()
    prism("corrupt", image_folder, "--kind", "pair", "--rate", 0, "--out", packed / "a.parquet")
    (tmp_path / "link").symlink_to(packed)
    monkeypatch.chdir(packed)
    pattern = f"{tmp_path}/packed/*.parquet"
    for data, name in ((".", "packed"), ("a.parquet", "a"), (pattern, "packed"), ("../link", "link")):
        status, _, error = prism("train", data, "--steps", 1, *QUICK[2:])
        assert status == 0, error
        assert (packed / "runs" / name / "run.json").is_file()
        shutil.rmtree(packed / "runs")


@pytest.mark.parametrize("content", ["{}", "[]", "{"])
def test_a_run_whose_description_is_damaged(prism, image_folder, tmp_path, content):
    run = tmp_path / "run"
    assert prism("train", image_folder, "--out", run, *QUICK)[0] == 0
    (run / "run.json").write_text(content)
    for command in (("train", image_folder, "--resume"), ("audit", run, image_folder)):
        status, _, error = prism(*command, "--out", run, *(QUICK if command[0] == "train" else ()))
        assert status == 2
        assert error.endswith("run.json: not the description of a run\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seed", 2**63), "seed must be below 2^63"),
        (("--image-size", 0), "image_size must be at least 1"),
        (("--max-unreadable", 1), "max_unreadable must be in [0, 1), not 1.0"),
    ],
)
def test_settings_that_cannot_work_are_told(prism, image_folder, tmp_path, options, message):
    status, _, error = prism("train", image_folder, "--out", tmp_path / "run", *QUICK, *options)
    assert (status, error.count("\n")) == (2, 1)
    assert message in error


def test_a_run_is_not_written_into_its_data(prism, image_folder):
    status, _, error = prism("train", image_folder, "--out", image_folder, *QUICK)
    assert (status, "it would become a part of the input" in error) == (2, True)


def test_settings_of_other_methods_are_named(prism, noisy_list, tmp_path, caplog):
    options = (
        "--method",
        "nsoftmax",
        "--temperature",
        0.5,
        "--bank-size",
        9,
        "--margin",
        0.5,
    )  # the last is the default
    assert prism("train", noisy_list, "--out", tmp_path / "run", *options, *QUICK)[0] == 0
    said = [record.getMessage() for record in caplog.records if "no effect" in record.getMessage()]
    assert said == [f"--{name} has no effect on method nsoftmax" for name in ("temperature", "bank-size")]
    caplog.clear()
    options = ("--method", "mcl", "--bank-size", 9, "--margin", 0.4)
    assert prism("train", noisy_list, "--out", tmp_path / "other", *options, *QUICK)[0] == 0
    assert "no effect" not in caplog.text
