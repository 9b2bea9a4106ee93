"""docs/large.md keeps its word: its commands run in order, on a store in memory instead of one in the cloud."""

import re
import shlex
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from prism_dml.cli.main import main
from prism_dml.data import read_table, write_table

PAGE = (Path(__file__).parents[1] / "docs" / "large.md").read_text(encoding="utf-8")


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """Two shards of 12 images of two classes at memory://shop/photos."""
    generator = np.random.default_rng(0)
    for name in ("cup", "pot"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(12):
            pixels = generator.integers(0, 255, (48, 48, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "train" / name / f"{i}.png")
    filesystem = fsspec.filesystem("memory")
    table = read_table(tmp_path)
    for shard in (0, 1):
        write_table(table.select(np.arange(shard, 24, 2)), tmp_path / "x.parquet")
        content = (tmp_path / "x.parquet").read_bytes()
        filesystem.pipe(f"/shop/photos/data/part-{shard}.parquet", content)
    monkeypatch.chdir(tmp_path)
    yield
    filesystem.rm("/shop", recursive=True)


def test_commands_run_in_order(shop, capsys):
    commands, embed = [], []
    for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL):
        for line in block.splitlines():
            program, *command = shlex.split(line.replace("s3://", "memory://"))
            if program == "torchrun":
                assert command[command.index("--no-python") + 1 :] == [
                    "prism",
                    *embed,
                ]  # the same on more machines
                continue
            assert program == "prism"
            if (
                command[0] == "train"
            ):  # the same command, shorter; memory:// is not shared with other processes
                assert command[-2:] == ["--workers", "2"]
                command[-1:] = ["0", "--steps", "2", "--classes-per-batch", "2", "--validation", "0"]
            if command[0] == "embed":
                embed = command[: command.index("embeddings") + 1]
                command += ["--devices", "1"]  # likewise
            assert main(command) == 0, f"{command}: {capsys.readouterr().err}"
            commands.append(command[0])
    assert commands == ["train", "evaluate", "corrupt", "embed", "embed", "audit", "index"]
    assert "24 embeddings of 128 numbers in embeddings (1 of 1 parts)" in capsys.readouterr().out


def test_layout_is_that_of_the_folder(shop):
    named = set(re.findall(r"embeddings/([\w.-]+)", PAGE))
    assert (
        main(["train", "memory://shop/photos", "--out", "run", "--steps", "1", "--classes-per-batch", "2"])
        == 0
    )
    assert main(["embed", "run", "memory://shop/photos", "--out", "e", "--rows-per-part", "12"]) == 0
    assert {file.name for file in Path("e").iterdir()} == named
