import json

import numpy as np
import pytest

from prism_dml.data import read_table


def test_corrupts_the_training_split_only_and_says_so(prism, image_folder, tmp_path):
    out = tmp_path / "noisy.csv"
    status, shown, _ = prism("corrupt", image_folder, "--kind", "symmetric", "--rate", 0.5, "--out", out)
    assert status == 0
    assert shown == f"{out}: 9 of 18 training labels (50.0%) are wrong (symmetric, seed 0)\n"
    table = read_table(out)
    assert table.is_noisy.sum() == 9
    assert not table.is_noisy[table.splits == "test"].any()


def test_seed_repeats_itself_and_another_differs(prism, image_folder, tmp_path):
    labels = []
    for number, seed in enumerate([3, 3, 4]):
        out = tmp_path / f"{number}.csv"
        prism("corrupt", image_folder, "--kind", "symmetric", "--rate", 0.5, "--seed", seed, "--out", out)
        labels.append(read_table(out).labels)
    assert (labels[0] == labels[1]).all()
    assert (labels[0] != labels[2]).any()


def test_json(prism, image_folder, tmp_path):
    out = tmp_path / "n.parquet"
    status, shown, _ = prism(
        "corrupt", image_folder, "--kind", "small-cluster", "--rate", 0.34, "--out", out, "--json"
    )
    assert status == 0
    assert json.loads(shown) == {
        "out": str(out), "kind": "small-cluster", "rate": 0.34, "seed": 0, "images": 28, "train_images": 18,
        "wrong_labels": 6, "wrong_share": pytest.approx(1 / 3),
    }  # fmt: skip


def test_confusion_matrix(prism, image_folder, tmp_path):
    matrix, out = tmp_path / "m.csv", tmp_path / "n.csv"
    np.savetxt(matrix, np.roll(np.eye(3), 1, axis=1), delimiter=",")  # every class becomes the next
    kind = ("--kind", "class-conditional", "--confusion", matrix, "--out", out)
    status, shown, _ = prism("corrupt", image_folder, *kind)
    assert status == 0
    assert "18 of 18 training labels (100.0%)" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--kind", "pair"), "pair noise needs a rate"),
        (("--kind", "pair", "--rate", "2"), "the noise rate must be in [0, 1], not 2.0"),
        (("--kind", "class-conditional"), "class-conditional noise needs a confusion matrix"),
        (("--kind", "class-conditional", "--confusion", "nowhere.csv"), "nowhere.csv"),
        (
            ("--kind", "pair", "--rate", "0", "--confusion", "m.csv"),
            "--confusion goes with --kind class-cond",
        ),
    ],
)
def test_mistakes_leave_no_file(prism, image_folder, tmp_path, options, message):
    status, shown, error = prism("corrupt", image_folder, *options, "--out", tmp_path / "n.csv")
    assert (status, shown) == (2, "")
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_matrix_that_is_no_matrix(prism, image_folder, tmp_path):
    matrix = tmp_path / "m.csv"
    matrix.write_text("a,b\n1,2\n", encoding="utf-8")
    options = ("--kind", "class-conditional", "--confusion", matrix, "--out", tmp_path / "n.csv")
    status, _, error = prism("corrupt", image_folder, *options)
    assert status == 2
    assert f"{matrix}: not a CSV of numbers without a header" in error


def test_never_overwrites_its_input(prism, image_folder, tmp_path):
    data = tmp_path / "d.csv"
    prism("corrupt", image_folder, "--kind", "pair", "--rate", 0, "--out", data)
    before = data.read_bytes()
    status, _, error = prism("corrupt", data, "--kind", "pair", "--rate", 0.5, "--out", data)
    assert status == 2
    assert "never overwritten" in error
    assert data.read_bytes() == before


def test_labels_of_other_splits_that_are_wrong_already_do_not_count(prism, image_folder, tmp_path):
    noisy = tmp_path / "noisy.csv"
    rows = ["path,label,clean_label,split"]
    rows += [
        f"{split}/{i}.png,{'ab'[i % 2]},{'ab'[i % 2]},{split}"
        for split in ("train", "test")
        for i in range(8)
    ]
    noisy.write_text("\n".join(rows).replace("test/0.png,a,a", "test/0.png,a,b"))
    status, shown, error = prism(
        "corrupt", noisy, "--kind", "symmetric", "--rate", 0.25, "--out", tmp_path / "n.csv"
    )
    assert status == 0, error
    assert "2 of 8 training labels (25.0%) are wrong" in shown


def test_other_columns_of_a_list_stay(prism, tmp_path):
    (tmp_path / "d.csv").write_text("id,path,label,note\n007,a.png,a,x\n008,b.png,b,\n")
    status, _, error = prism(
        "corrupt", tmp_path / "d.csv", "--kind", "pair", "--rate", 1, "--out", tmp_path / "n.csv"
    )
    assert (status, error) == (0, "")
    assert (tmp_path / "n.csv").read_text() == (
        "id,path,label,note,clean_label,is_noisy\n007,a.png,b,x,a,True\n008,b.png,a,,b,True\n"
    )


def test_never_overwrites_the_matrix(prism, image_folder, tmp_path):
    matrix = tmp_path / "m.csv"
    matrix.write_text("0,1,0\n0,1,0\n0,0,1\n")
    options = ("--kind", "class-conditional", "--confusion", matrix, "--out", matrix)
    status, _, error = prism("corrupt", image_folder, *options)
    assert status == 2 and "it is the input, which is never overwritten" in error
    assert matrix.read_text() == "0,1,0\n0,1,0\n0,0,1\n"
