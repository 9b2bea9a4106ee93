import pytest

from prism_dml.benchmark.results import append_record, done, failed, read_records


def test_a_line_that_was_cut_short_is_forgotten_and_the_next_one_stands_alone(tmp_path):
    file = tmp_path / "results.jsonl"
    assert read_records(file) == []
    append_record(file, {"key": "a", "error": None, "row": "é"})
    with file.open("ab") as stream:
        stream.write('{"key": "b", "row": "é'.encode()[:-1])
    assert [record["key"] for record in read_records(file)] == ["a"]
    append_record(file, {"key": "c", "error": None})
    assert [record["key"] for record in read_records(file)] == ["a", "c"]


def test_names_may_hold_any_character(tmp_path):
    """Some of them end a line for Python, but not in JSON."""
    file, record = tmp_path / "results.jsonl", {"key": "a", "error": None, "row": "a\u2028b\x85c\x1dd\ne"}
    append_record(file, record)
    append_record(file, record)
    assert read_records(file) == [record, record]


@pytest.mark.parametrize(
    "line", [b"nonsense", b'"\xff"', b"3", b'{"key": "a"}', b'{"error": null}', b"[" * 100_000]
)
def test_other_damage_is_named(tmp_path, line):
    file = tmp_path / "results.jsonl"
    file.write_bytes(b'{"key": "a", "error": null}\n' + line + b"\n")
    with pytest.raises(ValueError, match="results.jsonl, line 2: damaged") as caught:
        read_records(file)
    assert "\n" not in str(caught.value)


def test_a_run_that_succeeded_once_has_not_failed():
    records = [
        {"key": k, "error": e, "n": n}
        for n, (k, e) in enumerate([("a", "x"), ("a", None), ("b", "y"), ("b", "z")])
    ]
    assert {key: record["n"] for key, record in done(records).items()} == {"a": 1}
    assert {key: record["n"] for key, record in failed(records).items()} == {"b": 3}
