"""The real command, stopped by a real signal, and resumed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from prism_dml.models.files import CHECKPOINT
from prism_dml.training import TrainConfig, train

PRISM = [sys.executable, "-c", "import sys; from prism_dml.cli.main import main; sys.exit(main())"]
STEPS = 150
OPTIONS = {
    "image-size": 16, "embedding-dim": 8, "steps": STEPS, "classes-per-batch": 4, "samples-per-class": 3,
    "method": "prism-mcl", "noise-rate": "auto",
    "validation": 0.2, "validate-every": 20, "log-every": 1, "checkpoint-every": 1000,
    "workers": 0, "accelerator": "cpu",
}  # fmt: skip


def start(folder: Path, out: Path, *more: str, own_group: bool = False) -> subprocess.Popen[str]:
    options = [f"--{name}={value}" for name, value in OPTIONS.items()]
    return subprocess.Popen(
        [*PRISM, "train", str(folder), "--out", str(out), *options, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=own_group,
    )


def lines(out: Path) -> int:
    log = out / "metrics.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


def stop(command: subprocess.Popen[str], out: Path, number: int, after: int, group: bool = False) -> int:
    """Send a signal once the log has so many lines, to all of its group or to it alone; the exit status."""
    deadline = time.monotonic() + 100
    while lines(out) < after and command.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    if group:
        os.killpg(command.pid, number)
    else:
        command.send_signal(number)
    _, errors = command.communicate(timeout=60)
    assert "stopped after step" in errors and "Traceback" not in errors, errors
    assert (out / CHECKPOINT).exists() and not (out / "run.json").exists()
    assert after <= lines(out) < STEPS
    return command.returncode


def test_a_run_stopped_twice_and_resumed_is_the_same_run(folder: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    first = start(folder, cut)
    config = TrainConfig(**{name.replace("-", "_"): value for name, value in OPTIONS.items()})
    train(folder, config, whole)
    assert stop(first, cut, signal.SIGINT, after=3) == 130
    assert stop(start(folder, cut, "--resume"), cut, signal.SIGTERM, after=lines(cut) + 3) == 143
    train(folder, config, cut, resume=True)
    files = [sorted(p.relative_to(out) for p in out.rglob("*") if p.is_file()) for out in (whole, cut)]
    assert files[0] == files[1]
    for name in files[0]:
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), name


def test_a_signal_to_the_whole_group_stops_no_decoder_first(folder: Path, tmp_path: Path) -> None:
    """As `timeout` and queues send it."""
    for attempt in range(3):  # where it comes between two steps, the run waits for a decoder
        out = tmp_path / str(attempt)
        run = start(folder, out, "--cache=stream", "--workers=2", own_group=True)
        assert stop(run, out, signal.SIGTERM, after=3, group=True) == 143
