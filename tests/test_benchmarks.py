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
