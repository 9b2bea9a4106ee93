"""Protocols with anything in them: a protocol, or one line that names the file."""

import copy

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prism_dml.benchmark import Protocol, load_protocol, shipped_protocols

ODD = [
    *(
        None,
        True,
        0,
        -1,
        3,
        10**400,
        1.5,
        -0.0,
        1e38,
        float("nan"),
        float("inf"),
        "",
        "known",
        "auto",
        "1e-3",
        "ü\n",
    ),
    *([], [[]], [None], [0, 0], {}, {"name": "x"}, {3: 4}, "2001-99-99", "mcl", "raw-pixels", "symmetric"),
]
TEXTS = [
    *(
        "a: 2001-99-99",
        "a: 9" + "9" * 5000,
        "[" * 20_000,
        "a: &a [*a]",
        "&a a: *a",
        "a: *b",
        "\0",
        "%",
        "? [a]\n: b",
    ),
    *(
        "!!binary 'x'",
        "a: !!set {b}",
        "- a",
        "3",
        "",
        "a: 0x",
        "a: 1:99:99",
        "--- a\n--- b",
        "<<: 3",
        "a: [",
        "\t",
    ),
    *(
        "extends: p.yaml",
        "extends: [p.yaml]",
        "extends: .",
        "extends: ../../p.yaml",
        "data: &d [{name: a, path: *d}]",
    ),
]


def places(value, path=()):
    """Every place in nested lists and dictionaries."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def read_or_refuse(file) -> bool:
    try:
        protocol = load_protocol(str(file))
    except ValueError as error:
        assert "\n" not in str(error) and file.name in str(error), str(error)
        assert len(str(error)) < 2000
        return False
    assert isinstance(protocol, Protocol)
    for data in protocol.data:
        for row in protocol.rows:
            assert protocol.config(data, row).lr < 1e37
    return True


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_field_may_hold_anything(data, fields, tmp_path) -> None:
    fields = copy.deepcopy(fields)
    fields["tuning"] = {"noise": "pair", "rate": 0.2, "lr": [1e-3], "lr_with_proxies": [[1e-3, 1e-2]]}
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from([path for path in places(fields) if path]))
        inner = fields
        for step in path[:-1]:
            inner = inner[step]
        what = data.draw(st.sampled_from(["put", "put", "drop", "rename"]))
        if what == "put":
            inner[path[-1]] = copy.deepcopy(data.draw(st.sampled_from(ODD)))
        elif what == "drop":
            del inner[path[-1]]
        elif isinstance(inner, dict):
            inner[data.draw(st.sampled_from(["x", "", 3, None, "lr"]))] = inner.pop(path[-1])
    file = tmp_path / "p.yaml"
    file.write_text(yaml.safe_dump(fields, allow_unicode=True), encoding="utf-8")
    read_or_refuse(file)


@pytest.mark.parametrize("text", TEXTS)
def test_any_text(text, tmp_path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(text, encoding="utf-8")
    assert not read_or_refuse(file)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files(data, tmp_path) -> None:
    whole = yaml.safe_dump({"extends": "base.yaml", "grid": [{"noise": "symmetric", "rate": 0.5}]}).encode()
    base = b"data: [{name: a, path: b}]\nrows: [{name: m, method: mcl}]\ngrid: [{noise: none}]\n"
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    (tmp_path / "base.yaml").write_bytes(base)
    file = tmp_path / "p.yaml"
    file.write_bytes(whole[:start] + data.draw(st.binary(max_size=6)) + whole[end:])
    try:
        load_protocol(str(file))
    except ValueError as error:
        assert "\n" not in str(error) and str(tmp_path) in str(error)


def test_the_shipped_ones_are_read() -> None:
    assert all(load_protocol(name) for name in shipped_protocols())
