"""`prism train` under torchrun, on two machines that see the same folders: here, two agents on one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from prism_dml.models.files import CHECKPOINT
from prism_dml.training import train
from prism_dml.training.config import TrainConfig

PRISM = [sys.executable, "-c", "import sys; from prism_dml.cli.main import main; sys.exit(main())"]
OPTIONS = {
    "image_size": 16, "embedding_dim": 8, "steps": 12, "classes_per_batch": 2, "samples_per_class": 2, "lr": 1e-4,
    "method": "prism-mcl", "noise_rate": 0.2,
    "validation": 0.2, "log_every": 3, "checkpoint_every": 2, "workers": 0, "accelerator": "cpu",
    "bank_size": 31,
}  # fmt: skip


@pytest.fixture
def machines():
    """Starts an agent for each of two machines, the first with two processes, and ends what is left of them."""
    agents: list[subprocess.Popen] = []

    def start(folder: Path, out: Path, **more) -> list[subprocess.Popen]:
        options = [f"--{name.replace('_', '-')}={value}" for name, value in {**OPTIONS, **more}.items()]
        options.append("--shard-bank")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in (0, 1):
            where = [
                "--nnodes=2",
                f"--nproc-per-node={2 - rank}",
                f"--node-rank={rank}",
                "--master-addr=127.0.0.1",
            ]
            agent = [sys.executable, "-m", "torch.distributed.run", *where, f"--master-port={port}"]
            command = [*agent, "--no-python", *PRISM, "train", str(folder), "--out", str(out), *options]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            agents.append(subprocess.Popen(command, **pipes, text=True, env=environment))
        return agents

    yield start
    for agent in agents:
        for pid in workers(agent.pid):
            os.kill(pid, signal.SIGKILL)
        agent.kill()
        agent.communicate()


def workers(agent: int) -> list[int]:
    """Process ids of the processes that train for an agent."""
    listed = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(agent)], capture_output=True, text=True
    )
    return [int(line.split()[0]) for line in listed.stdout.splitlines() if "prism_dml.cli.main" in line]


def test_two_machines_train_what_one_process_does(machines, folder: Path, tmp_path: Path) -> None:
    """Of the four images in a batch, the third process has none."""
    first, second = machines(folder, tmp_path / "two")
    output, errors = first.communicate(timeout=300)
    assert first.returncode == 0, errors
    assert "Trained 12 steps" in output
    assert second.communicate(timeout=60)[0] == "" and second.returncode == 0, "one is enough to tell"
    train(folder, TrainConfig(**OPTIONS), tmp_path / "one")
    document = json.loads((tmp_path / "two" / "run.json").read_text())
    assert document["settings"]["devices"] == 3
    frames = [pd.read_parquet(tmp_path / name / "samples.parquet") for name in ("one", "two")]
    pd.testing.assert_frame_equal(*frames, rtol=1e-2, atol=1e-3)


def test_a_killed_process_ends_those_of_all_machines_with_one_line(
    machines, folder: Path, tmp_path: Path
) -> None:
    agents = machines(folder, tmp_path / "run", steps=100_000)
    deadline = time.monotonic() + 200
    while (
        not (tmp_path / "run" / CHECKPOINT).exists()
        and agents[0].poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    os.kill(workers(agents[1].pid)[0], signal.SIGKILL)
    (_, errors), (_, of_killed) = (agent.communicate(timeout=100) for agent in agents)
    assert agents[0].returncode != 0 and agents[1].returncode != 0
    ours, *rest = errors.partition("prism: error: ")
    assert "Traceback" not in ours, "torchrun's own comes after"
    assert "".join(rest).startswith(
        "prism: error: another process of this run is gone, and the run with it; --resume"
    )
    assert "SIGKILL" in of_killed
