import json

from prism_dml.methods.registry import METHODS


def test_lists_every_method_with_a_line(prism):
    status, shown, _ = prism("methods")
    assert status == 0
    lines = shown.splitlines()
    assert [line.split()[0] for line in lines] == list(METHODS)
    for line, method in zip(lines, METHODS.values(), strict=True):
        assert line.endswith(f"  {method.summary}") and len(line) <= 120


def test_json(prism):
    status, shown, _ = prism("methods", "--json")
    assert status == 0
    assert json.loads(shown) == {name: method.summary for name, method in METHODS.items()}
