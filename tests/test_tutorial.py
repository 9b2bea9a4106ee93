"""The tutorial keeps its word: its blocks run in order, on photographs of the data set that it is about."""

import json
import os
import re
import shlex
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from prism_dml.cli.main import main

DOCS = Path(__file__).parents[1] / "docs"
TUTORIAL = (DOCS / "tutorial.md").read_text(encoding="utf-8")
DATA = Path(os.environ.get("PRISM_DATA", ""), "grocery.parquet")
PHOTOS = 8
"""Of each product; with all of them the test would take minutes."""


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """A folder as `git clone` leaves it, with few photographs, and in it the test."""
    if not DATA.is_file():
        pytest.skip("needs grocery.parquet in $PRISM_DATA")
    images = pq.read_table(DATA, columns=["image"])["image"].to_pylist()
    images = pd.DataFrame(images).sort_values("path")
    for path, content in (
        images.groupby(images["path"].map(os.path.dirname)).head(PHOTOS)[["path", "bytes"]].values
    ):
        file = tmp_path / "GroceryStoreDataset" / "dataset" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    monkeypatch.chdir(tmp_path)


def export(audit, file, count=5):
    """What the page exports once a person has accepted the first suggestions."""
    content = json.loads((audit / "suggestions.json").read_text(encoding="utf-8"))
    content["corrections"] = content["corrections"][:count]
    file.write_text(json.dumps(content), encoding="utf-8")


def test_blocks_run_in_order(photographs, capsys):
    commands = []
    names = {}  # the Python blocks share theirs, as in one session
    for language, block in re.findall(r"```(sh|python)\n(.*?)```", TUTORIAL, flags=re.DOTALL):
        if language == "python":
            exec(compile(block, "tutorial.md", "exec"), names)
            continue
        for line in block.splitlines():
            program, *command = shlex.split(line)
            if program != "prism":
                assert line.startswith("git clone ")
                continue
            if "corrections.json" in command:
                export(Path("audit"), Path("corrections.json"))
            if command[0] == "train":  # the same command, shorter
                command += ["--steps", "10"]
            assert main(command) == 0, f"{command}: {capsys.readouterr().err}"
            commands.append(command[0])
    assert set(commands) == {"corrupt", "train", "evaluate", "audit", "apply", "index", "search"}
    shown = capsys.readouterr().out
    assert re.search(r"\d+ of \d+ wrong labels are among the \d+ suspects", shown)
    assert re.search(r"noisy.csv: 30\.\d% of [\d,]+ training labels are wrong", shown)
    assert Path("audit/report.html").is_file() and Path("found.png").is_file()
    decided = json.loads(Path("corrections.json").read_text(encoding="utf-8"))["corrections"]
    before, after = pd.read_csv("noisy.csv"), pd.read_csv("reviewed.csv")
    both = before.merge(after, on="path")
    assert decided and len(before) - len(after) == sum(item["action"] == "drop" for item in decided)
    assert (both["label_x"] != both["label_y"]).sum() == sum(item["action"] == "relabel" for item in decided)


def test_what_it_names_exists():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", TUTORIAL)
    assert links and not [link for link in links if not (DOCS / link).exists()]


def test_keys_are_those_of_the_page():
    page = (DOCS.parent / "src" / "prism_dml" / "audit" / "report.html.j2").read_text(encoding="utf-8")
    of_page = re.findall(r"<dt>(.*?)</dt>", page)
    of_tutorial = re.findall(r"^\| (<kbd>.*</kbd>) \|", TUTORIAL, flags=re.MULTILINE)
    assert of_page and of_tutorial == [*of_page, "<kbd>?</kbd>"]
