"""What befalls a run: kill -9 at any moment, a full disk, an exploding loss. The last checkpoint stays whole."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import load_file

from prism_dml.cli.main import main
from prism_dml.models import load
from prism_dml.models.files import CHECKPOINT
from prism_dml.training import TrainConfig, loop, run_folder, train
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


PRISM = [sys.executable, "-c", "import sys; from prism_dml.cli.main import main; sys.exit(main())"]


@pytest.fixture
def begun(folder: Path, tmp_path: Path):
    """A run without end, with a process that decodes, in the folder "run": it has left a checkpoint."""
    out = tmp_path / "run"
    options = ["--steps=1000000", "--cache=stream", "--workers=1"]
    command = subprocess.Popen(
        [*PRISM, *arguments(folder, out), *options],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    wait_for(lambda: (out / CHECKPOINT).exists() or command.poll() is not None)
    yield command
    command.kill()
    command.communicate()


def wait_for(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + 200
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.05)


def test_a_second_run_in_the_same_folder_ends_with_one_line(
    begun, folder: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """And once the first is killed, nobody is in the way any more: not its decoder either."""
    out = tmp_path / "run"
    command = [*arguments(folder, out), "--steps=1000000", "--cache=stream", "--resume"]
    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "WAIT", 0.1)
        assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"prism: error: another run is at work in {out}") and error.count("\n") == 1
    begun.kill()
    begun.wait()
    with run_folder.holding(out, resume=True):
        pass
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1)), "the log is of one run"


def test_a_folder_that_another_run_has_finished_meanwhile_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="already holds a run"):
        (tmp_path / "run.json").write_text("{}")
        with run_folder.holding(tmp_path, resume=False):
            raise AssertionError
    (tmp_path / "run.json").unlink()
    with run_folder.holding(tmp_path, resume=False):
        pass


def test_a_file_system_without_locks(folder: Path, whole, tmp_path: Path, monkeypatch, caplog) -> None:
    def acquire(self, timeout: float) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    train(folder, CONFIG, tmp_path / "run")
    assert "cannot be locked: let nothing else write to" in caplog.text
    assert left_behind(tmp_path / "run") == {name: data for name, data in whole.items() if name != ".lock"}


def test_a_killed_decoder_ends_a_run_with_one_line(begun, tmp_path: Path) -> None:
    listed = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(begun.pid)], capture_output=True, text=True
    )
    (decoder,) = [line.split()[0] for line in listed.stdout.splitlines() if "prism_dml.cli.main" in line]
    os.kill(int(decoder), signal.SIGKILL)
    _, errors = begun.communicate(timeout=100)
    assert begun.returncode == 2, errors
    at = re.escape(str(tmp_path / "run" / CHECKPOINT))
    assert re.fullmatch(  # it may be killed while it sends an image, of which torch does not know
        r"prism: error: a process that decodes images (was killed \(Killed\)|has ended): if memory is short, fewer "
        rf"workers need less; --resume goes on from {at}, with fewer workers too\n",
        errors,
    )


def test_a_connection_that_is_lost_is_one_to_a_process_that_decodes(
    folder: Path, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.setattr(
        loop, "finish", Mock(side_effect=ConnectionResetError(104, "Connection reset by peer"))
    )
    assert main(arguments(folder, tmp_path / "run")) == 2
    said = capsys.readouterr().err
    assert "a process that decodes images has ended: " in said and "--resume goes on from" in said


def test_too_little_memory_is_one_line(folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """Torch's own words; where there is no checkpoint nothing is said of one."""
    monkeypatch.setattr(loop, "finish", lambda *_: torch.empty(1 << 60, dtype=torch.uint8))
    assert main(arguments(folder, tmp_path / "run")) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "prism: error: not enough memory: torch asked for 1152921504606846976 bytes; smaller"
    )
    assert "--resume goes on from" in error and error.count("\n") == 1
    monkeypatch.setattr(loop, "open_sources", lambda *_: torch.empty(1 << 60, dtype=torch.uint8))
    assert main(arguments(folder, tmp_path / "other")) == 2
    assert capsys.readouterr().err.endswith("banks need less, and fewer workers\n")
