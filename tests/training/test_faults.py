"""What befalls a run from outside: a full disk, kill -9 in the middle of writing. The last checkpoint stays whole."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prism_dml.cli.main import main
from prism_dml.training import TrainConfig, loop, train
from prism_dml.training.checkpoint import FILE

OPTIONS = {
    "image_size": 16, "embedding_dim": 8, "steps": 12, "classes_per_batch": 4, "samples_per_class": 3,
    "noise_rate": "auto", "validation": 0.0, "log_every": 1, "checkpoint_every": 4, "workers": 0, "accelerator": "cpu",
}  # fmt: skip
CONFIG = TrainConfig(**OPTIONS)


def arguments(folder: Path, out: Path) -> list[str]:
    return [
        "train",
        str(folder),
        "--out",
        str(out),
        *(f"--{k.replace('_', '-')}={v}" for k, v in OPTIONS.items()),
    ]


def left_behind(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run leaves behind to which nothing happens."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(folder, CONFIG, out)
    return left_behind(out)


def test_a_full_disk_ends_a_run_with_one_line_and_a_whole_checkpoint(
    folder, whole, tmp_path: Path, monkeypatch, capsys
) -> None:
    """No file may become larger than half of the first checkpoint when the second is written."""
    out, original = tmp_path / "run", loop.save_checkpoint
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def save(*what) -> None:
        if (out / FILE).exists():
            resource.setrlimit(resource.RLIMIT_FSIZE, ((out / FILE).stat().st_size // 2, limits[1]))
        try:
            original(*what)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(loop, "save_checkpoint", save)
    assert main(arguments(folder, out)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"prism: error: {out / FILE} cannot be written: ") and error.count("\n") == 1
    assert "what was there before is whole" in error
    assert not [path for path in out.iterdir() if path.name.endswith(".tmp")]
    monkeypatch.undo()
    assert main([*arguments(folder, out), "--resume"]) == 0
    assert left_behind(out) == whole


SLOW = """
import sys, time
from pathlib import Path
from prism_dml.cli.main import main
from prism_dml.models import files

written, save = [], files.save_file

def half(tensors, path, notes):
    save(tensors, path, notes)
    written.append(path)
    if len(written) == 2:
        content = Path(path).read_bytes()
        Path(path).write_bytes(content[: len(content) // 2])
        Path(sys.argv[1]).touch()
        time.sleep(600)

files.save_file = half
main(sys.argv[2:])
"""


def test_kill_9_in_the_middle_of_a_checkpoint_loses_only_the_steps_since_the_last(
    folder: Path, whole, tmp_path: Path
) -> None:
    out, flag = tmp_path / "run", tmp_path / "half"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(flag), *arguments(folder, out)], env=environment
    )
    try:
        deadline = time.monotonic() + 100
        while not flag.exists() and command.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert flag.exists()
    finally:
        command.send_signal(signal.SIGKILL)
        command.wait()
    assert [path.stat().st_size > 0 for path in out.glob(".*.tmp")] == [True], "half of a checkpoint is left"
    train(folder, CONFIG, out, resume=True)
    assert left_behind(out) == whole, "nor is the half of one left"
