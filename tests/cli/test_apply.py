import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prism_dml.data import Correction, Corrections, read_table, table_fingerprint, write_corrections


@pytest.fixture
def corrections(image_folder, tmp_path):
    """One sample relabelled, one kept, one dropped."""
    table = read_table(image_folder)
    given = [table.classes[k] for k in table.labels]
    items = [
        Correction(0, table.paths[0], given[0], "relabel", "saucer"),
        Correction(1, table.paths[1], given[1], "keep", given[1]),
        Correction(2, table.paths[2], given[2], "drop", None),
    ]
    write_corrections(Corrections(table_fingerprint(table), items), tmp_path / "c.json")
    return tmp_path / "c.json"


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_writes_the_corrected_data_and_says_what_it_changed(
    prism, image_folder, corrections, tmp_path, suffix
):
    out, before = tmp_path / f"fixed{suffix}", read_table(image_folder)
    status, shown, _ = prism("apply", image_folder, corrections, "--out", out)
    assert status == 0
    assert shown == f"{out}: 27 images; 1 relabelled, 1 found right, 1 dropped\nNew classes: saucer\n"
    after, now = read_table(out), read_table(image_folder)
    assert after.classes[after.labels[0]] == "saucer"
    assert after.images.read(0) == before.images.read(0)
    assert len(after) == 27
    assert (now.paths, now.labels.tolist()) == (before.paths, before.labels.tolist())


def test_json(prism, image_folder, corrections, tmp_path):
    out = tmp_path / "fixed.csv"
    _, shown, _ = prism("apply", image_folder, corrections, "--out", out, "--json")
    assert json.loads(shown) == {
        "out": str(out), "images": 27, "relabelled": 1, "kept": 1, "dropped": 1, "suspects_left": None,
        "new_classes": ["saucer"],
    }  # fmt: skip


def test_suspects_that_nobody_has_decided_on_are_counted(prism, image_folder, corrections, tmp_path):
    content = json.loads(corrections.read_text())
    for undecided, said in ((1200, "1,200"), (0, None), ("many", None)):
        corrections.write_text(json.dumps(content | {"undecided": undecided}))
        status, shown, _ = prism("apply", image_folder, corrections, "--out", tmp_path / "fixed.csv")
        assert status == 0
        line = f"Suspects that nobody has decided on: {said}. Go on on the same page and apply all decisions anew.\n"
        assert (line in shown) == (said is not None) and ("Suspects" in shown) == (said is not None)


def test_suspects_without_a_suggestion_are_counted(prism, image_folder, corrections, tmp_path):
    suggestions = corrections.rename(tmp_path / "suggestions.json")
    mark = table_fingerprint(read_table(image_folder))
    command = ("apply", image_folder, suggestions, "--out", tmp_path / "fixed.csv")
    line = "Suspects left as they are (no other class is suggested, or the classes overlap): 2\n"
    for summary, known in [
        ({"fingerprint": mark, "label_issues": 5}, True),
        ({"fingerprint": mark, "label_issues": 3}, False),
        ({"fingerprint": "sha256:of other data", "label_issues": 5}, False),
        ([], False),
    ]:
        (tmp_path / "summary.json").write_text(json.dumps(summary))
        status, shown, _ = prism(*command)
        assert status == 0 and (line in shown) == known


def test_training_on_the_result_works(prism, image_folder, corrections, tmp_path):
    out = tmp_path / "fixed.csv"
    prism("apply", image_folder, corrections, "--out", out)
    options = ("--steps", 2, "--classes-per-batch", 2, "--samples-per-class", 2, "--image-size", 16)
    status, _, error = prism("train", out, *options, "--out", tmp_path / "run")
    assert status == 0, error


def test_corrections_of_other_data_leave_no_file(prism, image_folder, corrections, tmp_path):
    (tmp_path / "out").mkdir()
    content = json.loads(corrections.read_text())
    content["fingerprint"] = "sha256:0"
    corrections.write_text(json.dumps(content))
    status, shown, error = prism("apply", image_folder, corrections, "--out", tmp_path / "out" / "x.csv")
    assert (status, shown) == (2, "")
    assert error.startswith(
        "prism: error: the data have changed since they were audited, in images that have no "
    )
    assert error.count("\n") == 1
    assert not list((tmp_path / "out").iterdir())


def test_what_changed_in_a_folder_is_said(prism, image_folder, corrections, tmp_path):
    data, first = tmp_path / "d", read_table(image_folder).paths[0]
    shutil.copytree(image_folder, data)
    content = (data / first).read_bytes()
    (data / first).unlink()
    status, _, error = prism("apply", data, corrections, "--out", tmp_path / "x.csv")
    assert (status, error) == (
        2,
        f"prism: error: 1 image that was audited is missing in the data: {first}; put it back, or audit anew\n",
    )
    (data / first).write_bytes(content)
    (data / first).with_name("+.png").write_bytes(content)
    status, _, error = prism("apply", data, corrections, "--out", tmp_path / "x.csv")
    assert status == 2 and error.count("\n") == 1
    assert (
        "1 image was not there when the data were audited: test/fork/+.png; take it out, or audit anew"
        in error
    )


def test_input_is_never_overwritten(prism, image_folder, tmp_path):
    data = tmp_path / "d.csv"
    prism("corrupt", image_folder, "--kind", "pair", "--rate", 0, "--out", data)
    write_corrections(Corrections(table_fingerprint(read_table(data)), []), tmp_path / "c.json")
    before = data.read_bytes()
    status, _, error = prism("apply", data, tmp_path / "c.json", "--out", data)
    assert (status, data.read_bytes()) == (2, before)
    assert "never overwritten" in error


def test_the_same_command_again_replaces_what_it_wrote(prism, image_folder, tmp_path):
    """Also where the list goes by the name that the clean samples of a list without a header would have."""
    prism("corrupt", image_folder, "--kind", "pair", "--rate", 0, "--out", tmp_path / "photos.csv")
    table = read_table(tmp_path / "photos.csv")
    write_corrections(Corrections(table_fingerprint(table), []), tmp_path / "c.json")
    for _ in range(2):
        status, _, error = prism(
            "apply", tmp_path / "photos.csv", tmp_path / "c.json", "--out", tmp_path / "photos_cleaned.csv"
        )
        assert status == 0, error


def test_other_columns_of_a_list_stay(prism, tmp_path):
    (tmp_path / "d.csv").write_text('id,path,label,note\n007,a.png,a,"x, y"\n008,b.png,b,\n009,c.png,a,z\n')
    table = read_table(tmp_path / "d.csv")
    items = [Correction(0, "a.png", "a", "relabel", "b"), Correction(1, "b.png", "b", "drop", None)]
    write_corrections(Corrections(table_fingerprint(table), items), tmp_path / "c.json")
    status, _, error = prism("apply", tmp_path / "d.csv", tmp_path / "c.json", "--out", tmp_path / "f.csv")
    assert (status, error) == (0, "")
    assert (tmp_path / "f.csv").read_text() == 'id,path,label,note\n007,a.png,b,"x, y"\n009,c.png,a,z\n'


@pytest.mark.parametrize("kind", [".parquet", ".npz"])
def test_embeddings_that_were_audited_without_images(prism, tmp_path, kind):
    """Also where a class has a name that no list would give it."""
    generator, numbers = np.random.default_rng(0), np.repeat([0, 1, 2], 20)
    vectors = np.eye(8, dtype=np.float32)[numbers] + 0.05 * generator.normal(size=(60, 8)).astype(np.float32)
    labels = np.array(["a", "b ", "c"])[numbers]
    labels[[3, 50]] = "b ", "a"
    labels[22] = "a"
    data, out = tmp_path / f"e{kind}", tmp_path / "fixed.csv"
    if kind == ".npz":
        np.savez(data, embeddings=vectors, labels=labels)
    else:
        pq.write_table(pa.table({"embedding": vectors.tolist(), "label": labels.tolist()}), data)
    status, _, error = prism("audit", data, "--out", tmp_path / "a")
    assert status == 0, error
    status, shown, error = prism("apply", data, tmp_path / "a" / "suggestions.json", "--out", out)
    assert status == 0, error
    assert shown.startswith(f"{out}: 60 images; 3 relabelled, 0 found right, 0 dropped\n")
    right = np.array(["a", "b ", "c"])[numbers]
    assert out.read_text().splitlines() == [
        "path,label",
        *(f"#{i},{label}" for i, label in enumerate(right)),
    ]


def test_embeddings_in_columns_of_views_are_corrected(prism, tmp_path):
    """As newer writers of parquet store text; pyarrow takes no rows of such columns."""
    vectors = np.eye(6)[np.arange(12) % 6].tolist()
    names = pa.array(["a", "b"] * 6).cast(pa.string_view())
    rows = pa.table(
        {"path": pa.array(map(str, range(12))).cast(pa.string_view()), "label": names, "embedding": vectors}
    )
    pq.write_table(rows, tmp_path / "e.parquet")
    assert prism("audit", tmp_path / "e.parquet", "--out", tmp_path / "a")[0] == 0
    done = prism(
        "apply", tmp_path / "e.parquet", tmp_path / "a" / "suggestions.json", "--out", tmp_path / "c.csv"
    )
    assert done[0] == 0 and len((tmp_path / "c.csv").read_text().splitlines()) >= 12
