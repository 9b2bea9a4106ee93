"""The README keeps its word: its Python runs, its commands run, its pictures and files exist."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prism_dml.cli.main import main

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run(code: str, capsys) -> None:
    exec(compile(code, "README.md", "exec"), {})
    assert re.search(r"about \d+% of the labels are wrong", capsys.readouterr().out)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    for folder in ("photos", "other_photos"):
        for number in range(6):
            pattern = rng.integers(256, size=(3, 3, 3), dtype=np.uint8)
            (tmp_path / folder / f"class {number}").mkdir(parents=True)
            for copy in range(8):
                noise = rng.integers(-20, 20, size=(24, 24, 3))
                pixels = np.kron(pattern, np.ones((8, 8, 1))) + noise
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
                    tmp_path / folder / f"class {number}" / f"{copy}.png"
                )
    monkeypatch.chdir(tmp_path)


def test_commands_run_as_they_stand(folders, capsys) -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("prism ")]
    commands = [shlex.split(line, comments=True)[1:] for line in lines]
    assert {command[0] for command in commands} >= {"train", "evaluate", "embed", "corrupt"}
    for command in commands:
        if command[0] == "train":  # the same command, shorter
            command += ["--steps", "3", "--classes-per-batch", "4"]
        assert main(command) == 0, f"{command}: {capsys.readouterr().err}"
    assert Path("embeddings.parquet").is_file() and Path("runs/prism/samples.parquet").is_file()


def test_files_that_it_names_exist() -> None:
    root = Path(__file__).parents[1]
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links and not [link for link in links if not (root / link).exists()]


def test_make_targets_that_it_names_exist() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text(encoding="utf-8")
    targets = [
        word for block in blocks("sh") for word in re.findall(r"^make ([a-z-]+)", block, flags=re.MULTILINE)
    ]
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
