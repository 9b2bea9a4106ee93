import json
import re
import sys

import numpy as np
import torch

from prism_dml.cli.output import print_table, progress_bar, to_json, write_json


def test_json_is_strict_and_readable():
    result = {
        "name": "é", "nan": float("nan"), "count": np.int64(3), "loss": torch.tensor(0.5),
        "range": (0.1, np.inf), "inner": {"flag": np.bool_(True)},
    }  # fmt: skip
    text = to_json(result)
    assert "é" in text
    assert "NaN" not in text
    assert json.loads(text) == {
        "name": "é", "nan": None, "count": 3, "loss": 0.5, "range": [0.1, None], "inner": {"flag": True},
    }  # fmt: skip


def test_json_file_is_replaced_whole(tmp_path):
    file = tmp_path / "new" / "r.json"
    write_json({"a": 1}, file)
    write_json({"a": 2}, file)
    assert json.loads(file.read_text(encoding="utf-8")) == {"a": 2}
    assert [path.name for path in file.parent.iterdir()] == ["r.json"]


def test_table_goes_to_standard_output(capsys):
    print_table("Result", ("Measure", "Value"), [("Precision@1", "0.5"), ("a name with [brackets]", "1.0")])
    shown = capsys.readouterr()
    assert "Precision@1" in shown.out
    assert "[brackets]" in shown.out
    assert shown.err == ""


def test_long_title_stays_whole_and_no_rows_are_no_table(capsys):
    print_table("/a/very/long/path" * 20, ("Measure", "Value"), [])
    assert capsys.readouterr().out == "/a/very/long/path" * 20 + "\n"


LONG = f"/a path/{'of many folders/' * 8}and a name.jpg"


def test_nothing_is_cut_where_lines_can_have_any_length(capsys):
    print_table("Result", ("Image", "Label", "Value"), [(LONG, "cup", "0.5")])
    assert re.search(rf"^ +{LONG} +cup +0.5 *$", capsys.readouterr().out, flags=re.MULTILINE)


def test_on_a_terminal_long_names_go_on_below(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    print_table("Result", ("Image", "Label", "Value"), [(LONG, "cup", "0.5"), ("x" * 99, "a mug", "1")])
    shown = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert max(map(len, shown.splitlines())) <= 60 and "…" not in shown
    texts = re.sub(r"(cup +0\.5|a mug +1) *\n", "", shown)
    assert LONG.replace(" ", "") in re.sub(r"\s", "", texts) and "x" * 99 in re.sub(r"\s", "", texts)
    assert re.search(r" cup +0\.5 *$", shown, flags=re.MULTILINE), "the others stay whole"


def test_progress_is_silent_where_nobody_watches(capsys):
    with progress_bar() as bar:
        bar.update(bar.add_task("x", total=2), advance=1)
    assert capsys.readouterr() == ("", "")


def test_names_are_shown_as_they_are(capsys):
    print_table("title", ("Class", "Count"), [("x:key:y", "1"), ("[bold]z", "2")])
    shown = capsys.readouterr().out
    assert "x:key:y" in shown
    assert "[bold]z" in shown
