import importlib
import sys
from pathlib import Path
from unittest import mock

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py"))


@pytest.fixture
def script(monkeypatch):
    """Imports one from their folder, from which they import each other."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module
    for name in sys.modules.keys() & set(SCRIPTS):
        del sys.modules[name]


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_a_benchmark_imports_is_there(script, name) -> None:
    assert script(name).__doc__


def test_what_the_study_of_refract_changes_is_there(script) -> None:
    changed = [name for _, changes, _ in script("refract_study").VARIANTS.values() for name in changes]
    assert len(changed) > 20
    for name in changed:
        with mock.patch(f"prism_dml.{name}"):  # AttributeError if it is not
            pass


def test_a_result_that_was_cut_short_is_forgotten(script, tmp_path) -> None:
    read, file = script("resumed").read_results, tmp_path / "results.jsonl"
    assert read(file) == []
    file.write_text('{"row": 1}\n{"row": 2}\n{"ro')
    assert read(file) == read(file) == [{"row": 1}, {"row": 2}]
    assert file.read_text().endswith("2}\n")
    file.write_text('{"ro')
    assert read(file) == [] and file.read_text() == ""


def test_rows_of_the_study_are_means_over_the_same_seeds(script, tmp_path) -> None:
    looked = {"looks": [], "estimate": None, "seconds": 1.0, "map_at_r": 0.5}
    runs = [("MCL", 0, 0.25), ("Refract", 0, 0.5), ("Refract", 1, 1.0)]
    about = {"data": "grocery", "noise": "symmetric 50 %"}
    script("refract_study").write_table(
        tmp_path, [about | looked | {"row": row, "seed": seed, "precision_at_1": p} for row, seed, p in runs]
    )
    assert "| Refract | 1 | 0.500 | 0.500 |" in (tmp_path / "table.md").read_text()
