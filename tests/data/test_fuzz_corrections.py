"""Corrections with anything in them: carried out, or refused with one line, and the data stays as it was."""

import copy
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prism_dml.data import BytesImages, ImageTable, apply_corrections, read_corrections, table_fingerprint

LABELS = ["a", "b", "a", "10", "c"]
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 6)
    | st.floats()
    | st.sampled_from(["a", "", " b", "drop", "0.png", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["index", "x"]), inner, max_size=2)
    ),
    max_leaves=3,
)


def table() -> ImageTable:
    images = BytesImages([bytes([i]) for i in range(len(LABELS))])
    return ImageTable.from_names(images, [f"{i}.png" for i in range(len(LABELS))], list(LABELS), None, None)


def names(of: ImageTable) -> list[str]:
    return [of.classes[k] for k in of.labels]


@st.composite
def decisions(draw) -> list[dict]:
    """Right ones, as the review page writes them."""
    items = []
    for index in draw(st.lists(st.integers(0, len(LABELS) - 1), unique=True)):
        action = draw(st.sampled_from(["relabel", "keep", "drop"]))
        new = draw(st.sampled_from(["a", "new", "10", "é x"]))
        label = {"relabel": new, "keep": LABELS[index], "drop": None}[action]
        given = LABELS[index]
        items.append(
            {"index": index, "path": f"{index}.png", "given_label": given, "action": action, "label": label}
        )
    return items


def write(file, items) -> dict:
    content = {"version": 1, "fingerprint": table_fingerprint(table()), "corrections": items}
    file.write_text(json.dumps(content), encoding="utf-8")
    return content


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(items=decisions())
def test_right_ones_against_a_loop(items, tmp_path) -> None:
    write(tmp_path / "c.json", items)
    corrections, data = read_corrections(tmp_path / "c.json"), table()
    expected: list[tuple[str, str]] = []
    decided = {item["index"]: item for item in items}
    for i, label in enumerate(LABELS):
        if i not in decided:
            expected.append((f"{i}.png", label))
        elif decided[i]["label"] is not None:
            expected.append((f"{i}.png", decided[i]["label"]))
    if not expected:
        with pytest.raises(ValueError, match="every sample"):
            apply_corrections(data, corrections)
    else:
        after = apply_corrections(data, corrections).table
        assert list(zip(after.paths, names(after), strict=True)) == expected
    assert names(data) == LABELS


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(items=decisions(), data=st.data())
def test_any_field_may_hold_anything(items, data, tmp_path) -> None:
    content = copy.deepcopy(write(tmp_path / "c.json", items))
    holder = data.draw(st.sampled_from([content, *content["corrections"]]))
    name = data.draw(st.sampled_from(sorted(holder)))
    if data.draw(st.booleans()):
        holder[name] = data.draw(ANYTHING)
    else:
        del holder[name]
    (tmp_path / "c.json").write_text(json.dumps(content), encoding="utf-8")
    check(tmp_path / "c.json")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(items=decisions(), data=st.data())
def test_damaged_files(items, data, tmp_path) -> None:
    file = tmp_path / "c.json"
    write(file, items)
    whole = file.read_bytes()
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 40)))
    token = data.draw(
        st.binary(max_size=4) | st.sampled_from([b"9" * 5000, b"[" * 9000, b"1e999", b"NaN", b'"\\ud800"'])
    )
    file.write_bytes(whole[:start] + token + whole[end:])
    check(file)


def check(file) -> None:
    """Read and carried out, or refused in one line."""
    data = table()
    try:
        after = apply_corrections(data, read_corrections(file)).table
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 10_000
    else:
        assert 0 < len(after) <= len(data) and all(name.strip() for name in names(after))
    assert names(data) == LABELS
