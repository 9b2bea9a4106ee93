import json
import shutil

import numpy as np
import pytest
import torch

from prism_dml.cli.evaluate import measure
from prism_dml.data import BytesImages, Embedded, ImageTable


def embedded(vectors, labels, clean_labels=None, classes=2):
    labels = np.array(labels)
    paths = [str(i) for i in range(len(labels))]
    names = [str(k) for k in range(classes)]
    truth = None if clean_labels is None else np.array(clean_labels)
    table = ImageTable(BytesImages([b""] * len(labels)), paths, labels, names, truth)
    return Embedded(torch.tensor(vectors, dtype=torch.float32), table)


PAIRS = [[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]


def test_measures_by_the_truth_where_it_is_known():
    assert measure(embedded(PAIRS, [0, 0, 1, 1]), 0)[0]["precision_at_1"] == 1
    assert measure(embedded(PAIRS, [0, 1, 0, 1]), 0)[0]["precision_at_1"] == 0
    assert measure(embedded(PAIRS, [0, 1, 0, 1], [0, 0, 1, 1]), 0)[0]["precision_at_1"] == 1


def test_truth_outside_the_classes_is_left_out():
    metrics, _ = measure(embedded([*PAIRS, [1.0, 0.05]], [0, 0, 1, 1, 1], [0, 0, 1, 1, -1]), 0)
    assert metrics["num_queries"] == 4
    assert metrics["precision_at_1"] == 1


def test_intervals_hold_the_mean_and_repeat_with_the_seed():
    vectors = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)).tolist()
    data = embedded(vectors, np.arange(60) % 3, classes=3)
    metrics, intervals = measure(data, 1)
    for name, (low, high) in intervals.items():
        assert low <= metrics[name] <= high
        assert low < high
    assert measure(data, 1)[1] == intervals
    assert measure(data, 2)[1] != intervals


def test_table_and_file(prism, run_folder, image_folder, tmp_path):
    file = tmp_path / "m.json"
    status, shown, _ = prism("evaluate", run_folder, image_folder, "--json", file)
    assert status == 0
    result = json.loads(file.read_text(encoding="utf-8"))
    assert result["num_queries"] == 10
    assert result["split"] == "test"
    assert f"{result['precision_at_1']:.4f}" in shown
    assert "{:.4f} to {:.4f}".format(*result["intervals"]["map_at_r"]) in shown


def test_dash_prints_json_only(prism, run_folder, image_folder):
    options = ("--json", "-", "--split", "train", "--seed", 5)
    status, shown, _ = prism("evaluate", run_folder, image_folder, *options)
    assert status == 0
    result = json.loads(shown)
    assert (result["num_queries"], result["split"], result["seed"]) == (18, "train", 5)


def test_classes_that_it_has_learned_from_are_told(prism, run_folder, image_folder, tmp_path, caplog):
    run, file = tmp_path / "run", tmp_path / "run" / "run.json"
    shutil.copytree(run_folder, run)
    learned = {"result": {"steps": 1}, "settings": {}, "classes": ["cup", "fork", "tea pot"]}
    file.write_text(json.dumps(learned), encoding="utf-8")
    for split, told in (("train", "2 of 3"), ("test", "1 of 2")):
        caplog.clear()
        assert prism("evaluate", run, image_folder, "--split", split)[0] == 0
        (said,) = [record.getMessage() for record in caplog.records]
        assert said == f"{told} classes are not new to {run}: it has learned from classes of their names"
    file.write_text(json.dumps(learned | {"classes": ["spoon"]}), encoding="utf-8")
    caplog.clear()
    assert prism("evaluate", run, image_folder)[0] == 0 and not caplog.records


def test_unknown_split_names_those_there_are(prism, run_folder, image_folder):
    status, _, error = prism("evaluate", run_folder, image_folder, "--split", "dev")
    assert status == 2
    assert "test, train" in error


def test_a_split_of_data_without_splits_is_refused(prism, run_folder, image_folder):
    data = image_folder / "train"
    status, shown, error = prism("evaluate", run_folder, data, "--split", "tset")
    assert (status, shown) == (2, "")
    assert error == ("prism: error: there is no split 'tset': the data has no splits; leave split out\n")
    status, shown, _ = prism("evaluate", run_folder, data, "--json", "-")
    assert status == 0
    result = json.loads(shown)
    assert (result["num_queries"], result["split"]) == (18, None)


def test_the_test_is_measured_on_if_nothing_is_said(prism, run_folder, image_folder, tmp_path):
    shutil.copytree(image_folder / "train", tmp_path / "train")
    status, _, error = prism("evaluate", run_folder, tmp_path)
    assert status == 2
    assert "there is no split 'test' in the data; it has: train" in error


def test_an_interrupted_run_has_no_model_yet(prism, image_folder, tmp_path):
    (tmp_path / "checkpoint.safetensors").touch()
    status, _, error = prism("evaluate", tmp_path, image_folder)
    assert status == 2
    assert f"no model in {tmp_path} yet: its training is not finished" in error
    assert "if it was interrupted, go on with --resume" in error


def test_classes_of_one_image_each_cannot_be_measured():
    with pytest.raises(ValueError, match="no query has a reference"):
        measure(embedded(PAIRS[:2], [0, 1]), 0)


def test_one_class_tells_nothing(prism, run_folder, image_folder, tmp_path):
    shutil.copytree(image_folder / "test" / "fork", tmp_path / "fork")
    status, shown, error = prism("evaluate", run_folder, tmp_path)
    assert (status, shown) == (2, "")
    assert error == "prism: error: 2 classes or more are needed, the data has 1: fork\n"


def test_nothing_that_is_read_is_written_over(prism, run_folder, image_folder, tmp_path):
    listed = tmp_path / "list.csv"
    images = sorted((image_folder / "train").rglob("*.png"))
    listed.write_text("path,label\n" + "".join(f"{file},{file.parent.name}\n" for file in images))
    for target in (listed, run_folder / "model" / "model.json"):
        before = target.read_bytes()
        status, _, error = prism("evaluate", run_folder, listed, "--json", target)
        assert status == 2 and "it is the input, which is never overwritten" in error
        assert target.read_bytes() == before


def test_a_file_that_cannot_be_written_is_told_before_the_work(
    prism, run_folder, image_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("prism_dml.cli.evaluate.embed_table", None)
    (tmp_path / "file").touch()
    status, _, error = prism("evaluate", run_folder, image_folder, "--json", tmp_path / "file" / "m.json")
    assert (status, error.count("\n")) == (2, 1)
    assert "cannot be written" in error
