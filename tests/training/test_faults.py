"""What befalls a run: kill -9 at any moment, a full disk, an exploding loss. The last checkpoint stays whole."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from prism_dml.cli.main import main
from prism_dml.models import load
from prism_dml.models.files import CHECKPOINT
from prism_dml.training import TrainConfig, loop, train
from prism_dml.training.log import Log

OPTIONS = {
    "image_size": 16, "embedding_dim": 8, "steps": 12, "classes_per_batch": 4, "samples_per_class": 3,
    "method": "prism-mcl", "noise_rate": "auto",
    "validation": 0.0, "log_every": 1, "checkpoint_every": 4, "workers": 0, "accelerator": "cpu",
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
        if (out / CHECKPOINT).exists():
            resource.setrlimit(resource.RLIMIT_FSIZE, ((out / CHECKPOINT).stat().st_size // 2, limits[1]))
        try:
            original(*what)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(loop, "save_checkpoint", save)
    assert main(arguments(folder, out)) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith(f"prism: error: {out / CHECKPOINT} cannot be written: ") and error.count("\n") == 1
    )
    assert "what was there before is whole" in error
    assert not [path for path in out.iterdir() if path.name.endswith(".tmp")]
    monkeypatch.undo()
    assert main([*arguments(folder, out), "--resume"]) == 0
    assert left_behind(out) == whole


FULL = """
import os, shutil, sys
from pathlib import Path
from prism_dml.cli.main import main
from prism_dml.training import loop
from prism_dml.models.files import CHECKPOINT

disk, kept, *arguments = sys.argv[1:]
filler, original = Path(disk, "filler"), loop.save_checkpoint

def save(*what):
    file = Path(disk, "run", CHECKPOINT)
    if file.exists():  # room for half of a second checkpoint
        place = os.statvfs(disk)
        filler.write_bytes(bytes(place.f_bavail * place.f_frsize - file.stat().st_size // 2))
    original(*what)

loop.save_checkpoint = save
status = main(arguments)
filler.unlink()
loop.save_checkpoint = original
left = sorted(path.name for path in Path(disk, "run").iterdir())
print(status, *left, main([*arguments, "--resume"]))
shutil.copytree(Path(disk, "run"), kept)
"""


def test_a_disk_without_room_for_a_second_checkpoint(folder, whole, tmp_path: Path) -> None:
    """A real one: a file system of its own in memory, in a mount namespace, where the system lets us have that."""
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    mounted = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=64m tmpfs "$0" && exec "$@"', str(disk)]
    if shutil.which("unshare") is None or subprocess.run([*mounted, "true"], capture_output=True).returncode:
        pytest.skip("needs a mount namespace of its own")
    command = [sys.executable, "-c", FULL, str(disk), str(kept), *arguments(folder, disk / "run")]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as the run that it is compared with
    ended = subprocess.run([*mounted, *command], capture_output=True, text=True, env=one_thread)
    assert ended.returncode == 0, ended.stderr
    error = next(line for line in ended.stderr.splitlines() if line.startswith("prism: error"))
    assert error.startswith(f"prism: error: {disk / 'run' / CHECKPOINT} cannot be written: ")
    assert "No space left on device" in error and "what was there before is whole" in error
    status, *left, resumed = ended.stdout.splitlines()[-1].split()
    assert (status, resumed) == ("2", "0")
    assert CHECKPOINT in left and not [name for name in left if name.endswith(".tmp")]
    assert left_behind(kept) == whole


KILLED = """
import os, signal, sys
from pathlib import Path
import pandas as pd
from prism_dml.cli.main import main
from prism_dml.models import files
from prism_dml.training.guard import Guard

what, number = sys.argv[1], int(sys.argv[2])
seen = []

def killed_at(name):
    if what in str(name):
        seen.append(name)
    if len(seen) == number:
        os.kill(os.getpid(), signal.SIGKILL)

def half(write, place):
    def written(*arguments, **options):
        write(*arguments, **options)
        path = Path(arguments[place])
        if what in path.name and len(seen) == number - 1:
            os.truncate(path, path.stat().st_size // 2)
        killed_at(path.name)
    return written

remember = Guard.remember
Guard.remember = lambda self: (killed_at("a step"), remember(self))
files.save_file = half(files.save_file, 1)
Path.write_bytes = half(Path.write_bytes, 0)
Path.write_text = half(Path.write_text, 0)
pd.DataFrame.to_parquet = half(pd.DataFrame.to_parquet, 1)
main(sys.argv[3:])
"""


def killed(folder: Path, out: Path, what: str, number: int) -> None:
    """A run that kill -9 ends at the given moment, once for certain."""
    command = [sys.executable, "-c", KILLED, what, str(number), *arguments(folder, out)]
    result = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=200)
    assert result.returncode == -signal.SIGKILL
    assert not (out / "run.json").exists(), "it is not finished"


@pytest.mark.parametrize(
    ("what", "number"),
    [
        ("a step", 7),
        ("checkpoint", 1),
        ("checkpoint", 2),
        ("model-", 1),
        ("model.json", 1),
        ("samples", 1),
        ("run.json", 1),
    ],
)
def test_kill_9_at_any_moment_loses_only_the_steps_since_the_last_checkpoint(
    what, number, folder: Path, whole, tmp_path: Path
) -> None:
    """In a step, and in the middle of each file that is written: half of it is there, and is never read."""
    out = tmp_path / "run"
    killed(folder, out, what, number)
    half = [path for path in out.rglob(".*.tmp") if what in path.name]
    assert len(half) == (what != "a step"), "half of a file is left, under a name that nobody reads"
    if what == "model.json":
        with pytest.raises(ValueError, match="no model in"):
            load(out)
    if (what, number) == ("checkpoint", 1):
        with pytest.raises(ValueError, match="there is no checkpoint to go on from"):
            train(folder, CONFIG, out, resume=True)
        train(folder, CONFIG, out)
    else:
        train(folder, CONFIG, out, resume=True)
    assert left_behind(out) == whole, "nor is the half of one left"


def test_a_full_disk_names_the_log(tmp_path: Path) -> None:
    log = Log(tmp_path / "metrics.jsonl")
    log.write({"step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.size(), limits[1]))
    try:
        with pytest.raises(OSError, match="metrics.jsonl cannot be written: ") as caught:
            log.write({"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)


def test_a_loss_that_explodes_ends_the_command_with_one_line_and_the_last_good_checkpoint(
    folder: Path, tmp_path: Path, capsys
) -> None:
    """Really: a learning rate that makes every weight overflow. What is left is finite, and a run can go on from it."""
    out = tmp_path / "run"
    options = [*arguments(folder, out), "--lr=1e30", "--lr-warmup=0", "--steps=60", "--max-bad-steps=3"]
    assert main([*options, "--checkpoint-every=1"]) == 2
    error = capsys.readouterr().err
    assert "the loss or its gradient was not finite in 3 steps in a row, up to step" in error
    assert error.startswith("prism: error: ") and error.count("\n") == 1
    with safe_open(out / CHECKPOINT, framework="pt") as file:
        step = json.loads(file.metadata()["notes"])["step"]
    assert f"up to step {step + 1}:" in error
    tensors = load_file(out / CHECKPOINT)
    assert all(value.isfinite().all() for key, value in tensors.items() if key.startswith("method/embedder"))


def test_weights_that_are_no_numbers_end_a_run_with_what_may_help(table, tmp_path: Path, monkeypatch) -> None:
    def spoiled(embedder, *rest):
        embedder.head.weight.data.fill_(float("nan"))
        return original(embedder, *rest)

    original = loop.validate
    monkeypatch.setattr(loop, "validate", spoiled)
    config = TrainConfig(**OPTIONS | {"validation": 0.3, "validate_every": 4})
    with pytest.raises(ValueError, match="training has diverged, and a lower lr may help"):
        train(table.split("train"), config, tmp_path / "run")
