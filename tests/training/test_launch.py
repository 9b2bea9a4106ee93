"""Processes that fail, are killed, or are asked to stop: the others end too, and one line says why."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from prism_dml.models.files import CHECKPOINT
from prism_dml.training import launch as module
from prism_dml.training import train
from prism_dml.training.config import TrainConfig
from prism_dml.training.launch import launch

PRISM = [sys.executable, "-c", "import sys; from prism_dml.cli.main import main; sys.exit(main())"]
OPTIONS = {
    "image_size": 16, "embedding_dim": 8, "steps": 40, "classes_per_batch": 4, "samples_per_class": 3,
    "method": "prism-mcl", "noise_rate": 0.2,
    "validation": 0.0, "log_every": 1, "checkpoint_every": 2, "workers": 0, "accelerator": "cpu",
}  # fmt: skip


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import several

    yield several
    del sys.modules["several"]


def test_an_error_in_one_process_is_raised_and_ends_the_others(several, monkeypatch) -> None:
    monkeypatch.setattr(module, "GRACE", 0.5)
    with pytest.raises(ValueError, match="bad data"):
        launch(2, several.fail_or_wait)


def test_a_signal_is_passed_on_to_all(several) -> None:
    timer = threading.Timer(3.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt) as stopped:
        launch(2, several.wait_for_signal)
    assert stopped.value.signal == signal.SIGINT
    timer.join()


@pytest.mark.parametrize(
    ("answers", "lost", "stopped_by", "error", "message"),
    [
        ([ChildProcessError("gone"), ValueError("bad")], [], None, ValueError, "bad"),
        (
            [ChildProcessError("gone")],
            [1],
            None,
            ChildProcessError,
            "process 1 of 2 was killed by SIGKILL",
        ),
        ([ChildProcessError("gone"), RuntimeError("bug")], [], None, RuntimeError, "bug"),
        ([ChildProcessError("gone")], [], None, ChildProcessError, "gone"),
        (
            [ChildProcessError("gone")],
            [1],
            signal.SIGTERM,
            KeyboardInterrupt,
            "if it has left a checkpoint, --resume",
        ),
        ([], [], None, ChildProcessError, "could not start"),
        ([KeyboardInterrupt("after step 3")] * 2, [], signal.SIGTERM, KeyboardInterrupt, "after step 3"),
    ],
)
def test_the_failure_that_explains_the_others_is_raised(answers, lost, stopped_by, error, message) -> None:
    processes = [SimpleNamespace(exitcode=1), SimpleNamespace(exitcode=-9)]
    with pytest.raises(error, match=message):
        module._raise_failure(answers, lost, processes, stopped_by)


def children(pid: int) -> list[int]:
    """Process ids of a process's children that train."""
    listed = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True
    )
    return [int(line.split()[0]) for line in listed.stdout.splitlines() if "spawn_main" in line]


def test_a_killed_process_ends_the_command_with_one_line(folder: Path, tmp_path: Path) -> None:
    """And the run goes on, in one process, from the last checkpoint."""
    out = tmp_path / "run"
    options = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    command = subprocess.Popen(
        [*PRISM, "train", str(folder), "--out", str(out), *options, "--steps=100000", "--devices=2"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 200
    while not (out / CHECKPOINT).exists() and command.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    try:
        os.kill(children(command.pid)[1], signal.SIGKILL)
        _, errors = command.communicate(timeout=60)
    finally:
        command.kill()
    assert command.returncode == 2
    line = errors.splitlines()[-1]
    assert (
        line.startswith("prism: error: process ")
        and "was killed by SIGKILL" in line
        and "Traceback" not in errors
    )
    assert children(command.pid) == []
    with pytest.raises(ValueError, match="other settings or data: steps"):
        train(folder, TrainConfig(**OPTIONS), out, resume=True)


def test_processes_end_with_the_one_that_started_them() -> None:
    code = "import time; from prism_dml.training.launch import launch; launch(2, time.sleep, 300)"
    parent = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 200
    while len(found := children(parent.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)
    parent.kill()
    parent.wait()
    assert len(found) == 2
    while any(Path(f"/proc/{pid}").exists() for pid in found) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in found)
