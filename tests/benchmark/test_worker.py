from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from prism_dml.benchmark import frozen, worker
from prism_dml.benchmark.jobs import grid_jobs, tuning_jobs
from prism_dml.benchmark.tables import resolve, test_table, training_table, tuning_table
from prism_dml.benchmark.worker import _selection, run_job
from prism_dml.data import Augment, open_images, read_table
from prism_dml.models import load
from prism_dml.retrieval import retrieval_metrics
from prism_dml.training.measure import embed_all

test_table.__test__ = False


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def job_of(protocol_of, fields):
    places = grid_jobs(protocol_of(fields), lambda data, row: {})
    return lambda row: next(place.job for place in places if place.row.name == row)


def test_a_run_of_prism_that_is_told_the_truth(job_of, data_root, tmp_path):
    result = run_job(job_of("PRISM"), tmp_path, data_root, "cpu")
    assert (result["noise"], result["told"]) == (0.5, 0.5)
    assert 0 <= result["metrics"]["map_at_r"] <= result["metrics"]["precision_at_1"] <= 1
    assert 0 <= result["purity"] <= 1 and 0 <= result["wrong_found"] <= 1
    assert result["curves"]["step"] == [1, 2, 3] and len(result["curves"]["purity"]) == 3
    assert result["validation"] == []
    again = run_job(
        job_of("PRISM"), tmp_path, data_root, "cpu"
    )  # trained, but killed before it was evaluated
    assert again == result


def test_what_learns_from_right_labels_only_has_judged_none_of_the_wrong_ones(job_of, data_root, tmp_path):
    job = replace(job_of("MCL"), method="refract-oracle")
    result = run_job(job, tmp_path, data_root, "cpu")
    assert result["noise"] == 0.5 and result["metrics"]["map_at_r"] > 0
    judged = ("estimated", "purity", "clean_recall", "wrong_found", "auroc")
    assert [result[name] for name in judged] == [None] * 5


def test_weights_lie_beside_the_data(job_of, data_root, tmp_path):
    job = job_of("MCL")
    settings = {**job.settings, "backbone": "resnet10t", "image_size": 32, "weights": "trained.safetensors"}
    with pytest.raises(ValueError, match="no such file of weights: .*data.*trained.safetensors"):
        run_job(replace(job, settings=settings), tmp_path / "missing", data_root, "cpu")
    torch.manual_seed(0)
    save_file(timm.create_model("resnet10t").state_dict(), data_root / "trained.safetensors")
    result = run_job(replace(job, settings=settings), tmp_path / "run", data_root, "cpu")
    assert 0 <= result["metrics"]["map_at_r"] <= result["metrics"]["precision_at_1"] <= 1


def test_runs_share_what_a_frozen_backbone_sees(job_of, data_root, monkeypatch, tmp_path):
    """Each image is embedded once for all of them, and none of them comes out otherwise."""
    torch.manual_seed(0)
    save_file(timm.create_model("resnet10t").state_dict(), data_root / "trained.safetensors")
    settings = {
        "backbone": "resnet10t",
        "image_size": 32,
        "weights": "trained.safetensors",
        "freeze_backbone": True,
    }
    settings["augment"] = "none"
    jobs = [replace(job_of(row), settings={**job_of(row).settings, **settings}) for row in ("MCL", "PRISM")]
    tuned = replace(
        jobs[0], kind="tuning", settings={**jobs[0].settings, "validation": 0.4, "validate_every": 1}
    )
    looks, look = [], frozen._look

    def counted(table, config, accelerator):
        looks.append(len(table))
        return look(table, config, accelerator)

    monkeypatch.setattr(frozen, "_look", counted)
    results = [run_job(job, tmp_path / str(i), data_root, "cpu") for i, job in enumerate([*jobs, tuned])]
    assert looks == [52] and results[2]["validation"]
    monkeypatch.setattr(worker, "embedded_once", lambda table, *_: table)
    monkeypatch.setattr(worker, "open_vectors", lambda *_: None)
    with pytest.raises(AssertionError):  # of the test images they must be known
        run_job(jobs[0], tmp_path / "anew", data_root, "cpu")
    anew = load(tmp_path / "anew" / "run")
    assert torch.equal(anew.head.weight, load(tmp_path / "0" / "run").head.weight)
    test = open_images(read_table(data_root / "images").split("test"), 32, Augment("none", *_look_of(anew)))
    found = retrieval_metrics(embed_all(anew, test), torch.from_numpy(test.table.labels))
    assert results[0]["metrics"]["map_at_r"] == pytest.approx(found["map_at_r"], abs=1e-6)


def _look_of(model):
    return model.transform.mean, model.transform.std


def test_raw_pixels_are_those_of_the_test_images(job_of, data_root, tmp_path):
    metrics = run_job(job_of("Raw pixels"), tmp_path, data_root, "cpu")["metrics"]
    assert metrics["precision_at_1"] > 0.7  # each class has a colour


def test_tuning_is_judged_on_training_classes(protocol_of, fields, data_root, tmp_path):
    fields["tuning"] = {
        "noise": "pair",
        "rate": 0.2,
        "lr": [1e-3],
        "lr_with_proxies": [[1, 1]],
        "validation": 0.4,
    }
    protocol = protocol_of(fields)
    (job,) = tuning_jobs(protocol, protocol.data[0], protocol.rows[0])
    result = run_job(job, tmp_path, data_root, "cpu")
    assert "metrics" not in result
    assert [step for step, _ in result["validation"]] == [1, 2]


@pytest.mark.parametrize("noise, rate", [("symmetric", 0.5), ("small-cluster", 0.4), ("none", None)])
def test_tuning_learns_from_wrong_labels_and_validates_on_true_ones(job_of, data_root, noise, rate):
    job = replace(job_of("MCL"), kind="tuning", noise=noise, rate=rate, settings={"validation": 0.4})
    table, untouched = tuning_table(job, data_root), read_table(data_root / "images").split("train")
    assert list(table.paths) == list(untouched.paths)
    assert [table.classes[k] for k in table.clean_labels] == [untouched.classes[k] for k in untouched.labels]
    learned, validation = table.split("train"), table.split("validation")
    assert not validation.is_noisy.any() and len(validation.classes) == 2
    assert not set(validation.classes) & set(learned.classes)
    assert learned.is_noisy.mean() == pytest.approx(
        {"symmetric": 0.5, "small-cluster": 0.5, "none": 0}[noise], abs=0.01
    )


def test_tuning_on_labels_as_given(job_of, data_root, tmp_path):
    table = read_table(data_root / "images")
    names = np.array(table.classes)
    given, train = table.labels.copy(), table.splits == "train"
    wrong = np.flatnonzero(train)[::3]
    given[wrong] = given[np.roll(wrong, 5)]  # labels of other classes
    files = [str(data_root / "images" / path) for path in table.paths]
    columns = zip(files, names[given], names[table.labels], table.splits, strict=True)
    rows = [",".join(row) for row in columns]
    (tmp_path / "data.csv").write_text("\n".join(["path,label,clean_label,split", *rows]))
    job = replace(job_of("MCL"), kind="tuning", path=str(tmp_path / "data.csv"), noise="given", rate=None)
    found = tuning_table(replace(job, settings={"validation": 0.4}), tmp_path)
    learned, validation = found.split("train"), found.split("validation")
    assert not validation.is_noisy.any() and len(validation) == 12
    assert not set(validation.classes) & set(learned.classes)
    assert 0 < learned.is_noisy.sum() < len(wrong) and len(learned) < 24  # some named a class set aside


@pytest.mark.parametrize("truth_known", [True, False])
def test_of_classes_that_are_tested_too_images_are_set_aside(job_of, data_root, tmp_path, truth_known):
    table = read_table(data_root / "images").split("train")
    names, generator = np.array(table.classes), np.random.default_rng(0)
    truth = names[table.labels]
    given = np.where(np.arange(len(table)) % 3 == 0, np.roll(truth, 9), truth)
    splits = np.where(generator.permutation(len(table)) < 12, "test", "train")
    columns = [[str(data_root / "images" / path) for path in table.paths], given, splits]
    columns += [truth] if truth_known else []
    header = ["path", "label", "split", "clean_label"][: len(columns)]
    rows = [",".join(row) for row in [header, *zip(*columns, strict=True)]]
    (tmp_path / "data.csv").write_text("\n".join(rows))
    job = replace(job_of("MCL"), kind="tuning", path=str(tmp_path / "data.csv"), noise="given", rate=None)
    found = tuning_table(replace(job, settings={"validation": 0.25}), tmp_path)
    learned, validation = found.split("train"), found.split("validation")
    assert (len(learned), len(validation)) == (len(table) - 12 - 6, 6)
    assert set(validation.classes) <= set(learned.classes)
    if truth_known:
        assert not validation.is_noisy.any() and learned.is_noisy.any()
    else:
        assert found.clean_labels is None
        right = dict(zip(columns[0], given, strict=True))
        assert all(found.classes[k] == right[path] for k, path in zip(found.labels, found.paths, strict=True))


def test_labels_of_the_rows(job_of, data_root):
    noisy = training_table(job_of("MCL"), data_root)
    assert noisy.is_noisy.mean() == 0.5
    clean = training_table(job_of("All clean"), data_root)
    assert not clean.is_noisy.any() and len(clean) == 36
    assert test_table(job_of("MCL"), data_root).classes == ["w", "x", "y", "z"]


def test_small_clusters_leave_classes_without_a_name_which_all_clean_has(job_of, data_root):
    job = replace(job_of("MCL"), noise="small-cluster")
    noisy = training_table(job, data_root)
    assert noisy.num_classes == 3 and (noisy.clean_labels == -1).sum() == 18
    assert training_table(replace(job, labels="clean"), data_root).num_classes == 6


def test_labels_as_given_are_told_the_blocks_rate_where_the_truth_is_unknown(job_of, data_root, tmp_path):
    given = replace(job_of("PRISM"), noise="given", rate=0.25)
    result = run_job(given, tmp_path, data_root, "cpu")
    assert (result["noise"], result["told"], result["purity"]) == (None, 0.25, None)
    with pytest.raises(ValueError, match="the noise rate is not known"):
        run_job(replace(given, rate=None), tmp_path / "other", data_root, "cpu")
    with pytest.raises(ValueError, match="true labels are needed"):
        training_table(replace(given, labels="clean"), data_root)


def test_another_data_set_to_test_on(job_of, data_root):
    job = replace(job_of("MCL"), path="images/train")
    with pytest.raises(ValueError, match="no split 'test'; the data set needs a field test"):
        test_table(job, data_root)
    assert test_table(replace(job, test="images/train"), data_root).num_classes == 6
    assert len(test_table(replace(job, test="images"), data_root)) == 16


def test_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("SOMEWHERE", "/data")
    assert resolve("$SOMEWHERE/x", tmp_path).as_posix() == "/data/x"
    assert resolve("x.csv", tmp_path) == tmp_path / "x.csv"
    with pytest.raises(ValueError, match="environment variable in \\$NOWHERE/x is not set"):
        resolve("$NOWHERE/x", tmp_path)


def test_wrong_labels_found_follows_from_purity_and_recall():
    generator = np.random.default_rng(0)
    wrong, keep = generator.random(1000) < 0.4, generator.random(1000) < 0.6
    purity, recall = (~wrong)[keep].mean(), keep[~wrong].mean()
    judged = {"judgement": {"purity": purity, "clean_recall": recall, "auroc": 0.7}, "last_decisions": {}}
    facts = _selection(judged, wrong.mean(), True)
    assert facts["wrong_found"] == pytest.approx((~keep)[wrong].mean()) and facts["auroc"] == 0.7
    all_kept = {"last_decisions": {"purity": 0.6, "clean_recall": 1.0}}
    assert _selection(all_kept, 0.4, False)["wrong_found"] is None
    nothing_wrong = {"judgement": {"purity": 1.0, "clean_recall": 0.9}, "last_decisions": {}}
    assert _selection(nothing_wrong, 0.0, True)["wrong_found"] is None
