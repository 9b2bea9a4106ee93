import json
import shlex
from dataclasses import replace

import pytest

from prism_dml.benchmark import demo


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo") / "a folder"


@pytest.fixture(autouse=True)
def small_recipe(monkeypatch):
    """Few steps on few and small images."""
    whole = demo.letters_table
    monkeypatch.setattr(
        demo,
        "letters_table",
        lambda size, seed: tuple(part.select(part.labels < 9).compact() for part in whole(size, seed)),
    )
    recipe = replace(demo.RECIPES["letters"], image_size=12, steps=4)
    monkeypatch.setitem(demo.RECIPES, "letters", recipe)
    monkeypatch.setattr(demo, "LETTER_PIXELS", 16)


def test_table_then_json(prism, folder):
    """The table, and, from the finished demo, the same numbers for programs."""
    status, shown, said = prism("demo", "--out", folder)
    assert status == 0
    assert "[2/4] MCL + PRISM" in said and "[3/4] Refract" in said
    status, printed, _ = prism("demo", "--out", folder, "--json")
    assert status == 0
    result = json.loads(printed)
    assert result["out"] == str(folder)
    for model in result["models"].values():
        assert f"{model['precision_at_1']:.3f}" in shown
        assert f"{model['map_at_r']:.3f}" in shown
    for suspect in result["suspects"]:
        assert suspect["path"] in shown
    assert str(folder / "report.html") in shown.replace("\n", "")
    program, *command = shlex.split(shown.splitlines()[-1].partition("try: ")[2])
    assert program == "prism" and prism(*command)[0] == 0


def test_another_seed_needs_another_folder(prism, folder):
    prism("demo", "--out", folder)
    status, shown, error = prism("demo", "--out", folder, "--seed", 1)
    assert (status, shown) == (2, "")
    assert error.count("\n") == 1
    assert "seed 0 instead of 1" in error


def test_default_folders(prism, tmp_path, monkeypatch):
    """Each data set has a folder of its own."""
    monkeypatch.chdir(tmp_path)
    asked = []

    def refuse(data, out, seed, noise_rate, announce):
        asked.append((data, out.as_posix(), seed, noise_rate))
        raise ValueError("no")

    monkeypatch.setattr("prism_dml.benchmark.run_demo", refuse)
    assert prism("demo")[0] == 2
    prism("demo", "--data", "omniglot", "--noise-rate", 0.2, "--seed", 3)
    assert asked == [("letters", "runs/demo", 0, 0.5), ("omniglot", "runs/demo-omniglot", 3, 0.2)]


def test_unknown_data(prism):
    status, _, error = prism("demo", "--data", "digits")
    assert status == 2
    assert "letters" in error
