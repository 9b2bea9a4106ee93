"""The project's own rules: versions agree, the house's rooms stay apart, modules stay short."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import prism_dml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "prism_dml"
MODULES = sorted(PACKAGE.rglob("*.py"))

# From the ground up: a room imports only from rooms before it, and from none that it must not know.
GROUND = "files"  # the one module below all rooms
ROOMS = [
    "selection",
    "retrieval",
    "losses",
    "data",
    "models",
    "methods",
    "training",
    "audit",
    "benchmark",
    "cli",
]
STRANGERS = {
    "retrieval": {"selection"},
    "losses": {"selection", "retrieval"},
    "data": {"selection", "losses"},
    "models": {"data", "selection"},
    "methods": {"data"},
    "audit": {"training", "methods"},
}


def imported_rooms(source: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("prism_dml.")}


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_lowest_requirements_are_the_lower_bounds():
    bounds = [requirement.replace(">=", "==") for requirement in pyproject()["project"]["dependencies"]]
    lines = (ROOT / "requirements" / "lowest.txt").read_text(encoding="utf-8").splitlines()
    assert sorted(line for line in lines if line and not line.startswith("#")) == sorted(bounds)


def test_citation_names_the_version():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {prism_dml.__version__}\n" in citation


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_below(room):
    allowed = {GROUND, *ROOMS[: ROOMS.index(room) + 1]} - STRANGERS.get(room, set())
    for module in (PACKAGE / room).rglob("*.py"):
        used = imported_rooms(module.read_text(encoding="utf-8"))
        assert used <= allowed, f"{module.relative_to(ROOT)} imports from {sorted(used - allowed)}"


def test_the_ground_imports_no_room():
    assert not imported_rooms((PACKAGE / f"{GROUND}.py").read_text(encoding="utf-8"))


def test_every_folder_is_a_known_room():
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"} <= {
        *ROOMS
    }


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_module_keeps_the_house_style(module):
    text = module.read_text(encoding="utf-8")
    limit = (
        250 if module.relative_to(PACKAGE).as_posix() in ("training/loop.py", "selection/prism.py") else 299
    )
    assert len(text.splitlines()) <= limit
    assert module.name not in ("utils.py", "helpers.py")
    assert not re.search(r"\b(TODO|FIXME|XXX|NotImplementedError)\b", text)


def test_package_is_typed():
    assert (PACKAGE / "py.typed").is_file()


def test_public_names_are_there_and_listed():
    assert set(prism_dml.__all__) <= set(dir(prism_dml))
    for name in prism_dml.__all__:
        assert getattr(prism_dml, name) is not None


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'prism_dml' has no attribute 'nonsense'"):
        _ = prism_dml.nonsense


def test_importing_the_package_imports_nothing_heavy():
    heavy = "{'torch', 'numpy', 'pandas', 'matplotlib', 'sklearn', 'timm'}"
    code = f"import sys, prism_dml; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
