import json

import pytest

from prism_dml.data import (
    BytesImages,
    Correction,
    Corrections,
    ImageTable,
    apply_corrections,
    fingerprint,
    read_corrections,
    table_fingerprint,
    write_corrections,
)


def table(labels=("a", "b", "a", "10"), clean=None, splits=None):
    count = len(labels)
    images = BytesImages([bytes([i]) for i in range(count)])
    return ImageTable.from_names(images, [f"{i}.png" for i in range(count)], list(labels), clean, splits)


def names(of):
    return [of.classes[k] for k in of.labels]


def decided(data, *items):
    given = names(data)
    made = [Correction(i, data.paths[i], given[i], action, label) for i, action, label in items]
    return Corrections(table_fingerprint(data), made)


def test_carries_out_what_was_decided():
    data = table(clean=["a", "a", None, "10"], splits=["train", "train", "test", "test"])
    result = apply_corrections(
        data, decided(data, (1, "relabel", "new"), (0, "keep", "a"), (2, "drop", None), (3, "relabel", "10"))
    )
    after = result.table
    assert names(after) == ["a", "new", "10"]
    assert after.paths == ["0.png", "1.png", "3.png"]
    assert [after.images.read(i) for i in range(3)] == [b"\0", b"\1", b"\3"]
    assert after.splits.tolist() == ["train", "train", "test"]
    assert after.is_noisy.tolist() == [False, True, False]
    assert (result.relabelled, result.kept, result.dropped) == (1, 2, 1)
    assert result.new_classes == ["new"]
    assert names(data) == ["a", "b", "a", "10"]


def test_nothing_decided_changes_nothing():
    data = table()
    result = apply_corrections(data, decided(data))
    assert (result.table.paths, names(result.table)) == (data.paths, names(data))
    assert (result.relabelled, result.kept, result.dropped, result.new_classes) == (0, 0, 0, [])


def test_true_classes_that_no_label_names_stay_known():
    data = table(labels="aabb", clean=["a", "c", "b", "b"])
    after = apply_corrections(data, decided(data)).table
    assert [after.classes[k] for k in after.clean_labels] == ["a", "c", "b", "b"]


def test_file_round_trip(tmp_path):
    data = table()
    made = decided(data, (0, "relabel", "😀 <b>"), (1, "keep", "b"), (2, "drop", None))
    write_corrections(made, tmp_path / "c.json")
    assert read_corrections(tmp_path / "c.json") == made
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]


def one(index=0, path="0.png", given="a"):
    return [Correction(index, path, given, "drop", None)]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (
            one(9, "9.png"),
            "1 image that was audited is missing in the data: 9.png; put it back, or audit anew",
        ),
        (one(-1, "3.png"), "for sample -1, but they are numbered from 0"),
        (
            one(path="x") + one(2, "y"),
            "2 images that were audited are missing in the data: x, y; put them back",
        ),
        (one(given="b"), "has the label 'a' in the data, 'b' in the corrections"),
        (one() * 2, "two corrections for sample 0"),
    ],
)
def test_corrections_of_other_samples_are_refused(items, message):
    data = table()
    with pytest.raises(ValueError, match=message):
        apply_corrections(data, Corrections(table_fingerprint(data), items))


def test_corrections_of_other_data_are_refused():
    made = decided(table(), (0, "keep", "a"))
    with pytest.raises(ValueError, match="data have changed .* in images that have no correction"):
        apply_corrections(table(["a", "b", "b", "10"]), made)


def test_a_class_of_the_data_is_accepted_by_any_name(tmp_path):
    data = table(labels=["a", "b ", "a"])
    write_corrections(decided(data, (0, "relabel", "b ")), tmp_path / "c.json")
    assert names(apply_corrections(data, read_corrections(tmp_path / "c.json")).table) == ["b ", "b ", "a"]
    with pytest.raises(ValueError, match="sample 0: the new class ' c' must not begin or end with a space"):
        apply_corrections(data, decided(data, (0, "relabel", " c")))


def of_paths(paths):
    return ImageTable.from_names(BytesImages([b""] * len(paths)), paths, ["a"] * len(paths))


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ("bcdef", "1 image that was audited is missing in the data, before 'b'; put it back, or audit anew"),
        (
            "abdef",
            "1 image that was audited is missing in the data, after 'b' and before 'e'; put it back, or",
        ),
        (
            "abef",
            "2 images that were audited are missing in the data, after 'b' and before 'e'; put them back",
        ),
        ("acdef", "1 image that was audited is missing in the data: b; put it back, or audit anew"),
        ("aXcde", "1 image that was audited is missing in the data: b; put it back, or audit anew"),
        (
            "abcdXef",
            "not there when the data were audited, 1 of the 3 from 'c' to 'X'; take it out, or audit",
        ),
        (
            "abcdeXf",
            "in images that have no correction: one was added, taken out, renamed or given another label",
        ),
        ("abcde", "in images that have no correction"),
        (
            "aXYbcdef",
            "2 images were not there when the data were audited, 2 of the 3 from 'a' to 'Y'; take them",
        ),
        ("fedcba", "in another order than when they were audited; restore it, or audit anew"),
    ],
)
def test_what_has_changed_is_said(now, message):
    made = decided(of_paths("abcdef"), (4, "drop", None), (1, "keep", "a"))
    with pytest.raises(ValueError, match=message) as refusal:
        apply_corrections(of_paths(now), made)
    assert "\n" not in str(refusal.value)


def test_an_added_image_between_corrections_is_named():
    made = decided(of_paths("abc"), (0, "drop", None), (1, "keep", "a"))
    with pytest.raises(
        ValueError, match="1 image was not there when the data were audited: X; take it out, or"
    ):
        apply_corrections(of_paths("aXbc"), made)


def test_dropping_everything_is_refused():
    data = table(["a", "b"])
    with pytest.raises(ValueError, match="every sample of the data would be dropped"):
        apply_corrections(data, decided(data, (0, "drop", None), (1, "drop", None)))


def test_fingerprint_sees_every_change_and_no_boundary_is_blurred():
    seen = {
        fingerprint(paths, labels)
        for paths, labels in [
            (["a", "b"], ["x", "y"]),
            (["b", "a"], ["x", "y"]),
            (["a", "b"], ["x", "x"]),
            (["ab", ""], ["x", "y"]),
            (['a","b'], ["x", "y"]),
            ([], []),
        ]
    }
    assert len(seen) == 6
    assert fingerprint(["\udcff"], ["é"]).startswith("sha256:")  # a file name that is no UTF-8


GOOD = {"index": 0, "path": "p", "given_label": "a", "action": "relabel", "label": "b"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not a file of corrections"),
        ({"version": 2}, "version 2, but this version of Prism reads 1"),
        ({"version": None}, "version None"),
        ({"fingerprint": 3}, "fingerprint must be text"),
        ({"corrections": {}}, "corrections a list"),
        ({"corrections": [3]}, "correction 0 is not an object"),
        (
            {"corrections": [GOOD, {**GOOD, "index": "1"}]},
            "correction 1: index must be a whole number below 2.63, not '1'",
        ),
        ({"corrections": [{**GOOD, "index": True}]}, "index must be a whole number"),
        ({"corrections": [{**GOOD, "index": 10**20}]}, "index must be a whole number below 2"),
        ({"corrections": [{**GOOD, "path": None}]}, "path must be text"),
        (
            {"corrections": [{**GOOD, "action": "burn"}]},
            "action must be one of relabel, keep, drop, not 'burn'",
        ),
        ({"corrections": [{**GOOD, "action": ["drop"]}]}, "action must be one of"),
        ({"corrections": [{**GOOD, "label": " "}]}, "label must be the name of a class"),
        ({"corrections": [{**GOOD, "label": None}]}, "label must be the name of a class"),
        ({"corrections": [{**GOOD, "action": "keep"}]}, "keep does not go with the label 'b'"),
        ({"corrections": [{**GOOD, "action": "drop"}]}, "drop does not go with the label 'b'"),
    ],
)
def test_malformed_files_are_one_clear_line(tmp_path, content, message):
    file = tmp_path / "c.json"
    if isinstance(content, dict):
        content = json.dumps({"version": 1, "fingerprint": "f", "corrections": []} | content)
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as refusal:
        read_corrections(file)
    assert str(refusal.value).startswith(f"{file}: ")


def test_no_such_file(tmp_path):
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_corrections(tmp_path / "none.json")
