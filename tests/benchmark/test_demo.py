import json
import os
import signal
from dataclasses import asdict, replace
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from prism_dml.benchmark import DemoStopped, demo, demo_page, run_demo, summarise
from prism_dml.data import letters_table, open_images, read_table
from prism_dml.models import load
from prism_dml.training.log import Log

LETTERS = replace(demo.RECIPES["letters"], image_size=12, steps=6, log_every=2)


@pytest.fixture(scope="module", autouse=True)
def small_recipe():
    """Few steps on few and small images: here the demo has to run, not to shine."""

    @lru_cache(maxsize=1)
    def few_letters(size, seed):
        return tuple(part.select(part.labels < 12).compact() for part in letters_table(size, seed))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "letters_table", few_letters)
        patch.setitem(demo.RECIPES, "letters", LETTERS)
        patch.setattr(demo, "LETTER_PIXELS", 16)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "runs" / "demo"
    lines = []
    return out, run_demo("letters", out, 0, 0.5, lines.append), lines


def without_time(result):
    return {key: value for key, value in result.items() if key != "seconds"}


def test_folder_has_all_that_is_promised(finished):
    out, result, lines = finished
    for method in ("mcl", "prism-mcl", "refract", "oracle"):
        assert load(out / method).config["image_size"] == 12
    sheets = [f"retrieval-{method}" for method in ("mcl", "prism-mcl", "refract", "oracle")]
    for name in ("precision", "clean_probability", "training", *sheets):
        Image.open(out / "pictures" / f"{name}.png").verify()
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "MCL + PRISM" in page and "Refract" in page
    assert json.loads((out / "result.json").read_text(encoding="utf-8")) == json.loads(json.dumps(result))
    assert not list(out.glob(".*"))
    assert any("oracle" in line.lower() for line in lines)


def test_line_is_drawn_where_the_decision_is(finished, tmp_path, monkeypatch):
    out, result, _ = finished
    (tmp_path / "refract").mkdir()
    (tmp_path / "refract" / "metrics.jsonl").write_bytes((out / "refract" / "metrics.jsonl").read_bytes())
    samples = pd.read_csv(out / "samples.csv")
    lines = []
    monkeypatch.setattr(demo_page, "plot_clean_probability", lambda *arguments: lines.append(arguments[3]))
    test = demo._noisy_table("letters", 0, 0.5).split("test")
    vectors = dict.fromkeys(demo_page.MODELS, torch.eye(len(test)))
    for judged in (samples, samples[samples["keep"]]):  # where all are kept, too
        demo_page.draw_pictures(tmp_path, result, judged, test, vectors)
    assert lines == [0.5, 0.5]
    assert (samples["keep"] == (samples["clean_probability"] >= 0.5)).all()
    assert "of a probability of 0.5 or more" in (out / "report.html").read_text(encoding="utf-8")


def test_samples_are_sorted_and_agree_with_the_result(finished):
    out, result, _ = finished
    samples = pd.read_csv(out / "samples.csv", dtype={"label": str, "clean_label": str})
    assert len(samples) == result["train_images"]
    assert samples["clean_probability"].is_monotonic_increasing
    assert samples["is_wrong"].mean() == pytest.approx(result["noise_rate_true"]) == 0.5
    # The true class is the first part of a letter's path.
    assert (samples["path"].str[0] == samples["clean_label"]).all()
    assert ((samples["label"] != samples["clean_label"]) == samples["is_wrong"]).all()
    kept = samples["keep"]
    assert (~samples["is_wrong"])[kept].mean() == pytest.approx(result["purity"])
    assert kept[~samples["is_wrong"]].mean() == pytest.approx(result["clean_recall"])
    assert [suspect["path"] for suspect in result["suspects"]] == samples["path"][:10].tolist()


def test_data_can_be_used_by_the_other_commands(finished):
    out, result, _ = finished
    train, test = (read_table(out / "data.parquet", split) for split in ("train", "test"))
    assert (len(train), len(test)) == (result["train_images"], result["test_images"])
    assert not set(train.classes) & set(test.classes)
    assert train.is_noisy.mean() == 0.5
    assert not test.is_noisy.any()


def test_gap_closed():
    models = {"mcl": 0.5, "prism-mcl": 0.8, "refract": 1.0, "oracle": 0.9}
    rows = {name: {"map_at_r": value} for name, value in models.items()}
    assert demo._gap_closed(rows, "prism-mcl", "map_at_r") == pytest.approx(0.75)
    assert demo._gap_closed(rows, "refract", "map_at_r") == pytest.approx(1.25)
    rows["oracle"] = {"map_at_r": 0.5}
    assert demo._gap_closed(rows, "refract", "map_at_r") is None


def test_raw_pixels_are_those_that_the_models_see(finished):
    result = finished[1]
    test = demo._noisy_table("letters", 0, 0.5).split("test")
    pixels = demo._pixels(open_images(test, 12, demo.LOOK))
    assert pixels.shape == (len(test), 12 * 12)
    assert 0 <= pixels.min() < 0.5 < pixels.max() <= 1
    unit = pixels / pixels.norm(dim=1, keepdim=True)
    nearest = (unit @ unit.T).fill_diagonal_(-1).argmax(dim=1).numpy()
    precision = (test.labels[nearest] == test.labels).mean()
    assert result["models"]["raw-pixels"]["precision_at_1"] == pytest.approx(precision)


def test_finished_demo_is_shown_again(finished, monkeypatch):
    out, result, _ = finished
    monkeypatch.setattr(demo, "train", None)  # calling it would fail
    lines = []
    assert run_demo("letters", out, 0, 0.5, lines.append) == json.loads(json.dumps(result))
    assert "finished" in lines[0]


@pytest.mark.parametrize(
    ("seed", "noise_rate", "named"),
    [(1, 0.5, "seed 0 instead of 1"), (0, 0.2, "noise-rate 0.5 instead of 0.2")],
)
def test_folder_of_another_demo_is_refused(finished, seed, noise_rate, named):
    with pytest.raises(ValueError, match=named):
        run_demo("letters", finished[0], seed, noise_rate, print)


def test_folder_of_a_demo_with_other_methods_is_refused(tmp_path):
    """Of an earlier Prism."""
    (tmp_path / "demo.json").write_text(
        json.dumps({"data": "letters", "noise_rate": 0.5, "recipe": asdict(LETTERS)})
    )
    with pytest.raises(ValueError, match="methods None instead of"):
        run_demo("letters", tmp_path, 0, 0.5, print)


def test_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="holds no demo"):
        run_demo("letters", tmp_path, 0, 0.5, print)
    with pytest.raises(ValueError, match="holds no demo"):
        run_demo("letters", tmp_path / "thesis.tex", 0, 0.5, print)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_noise_rate_out_of_range(tmp_path, rate):
    with pytest.raises(ValueError, match="noise_rate"):
        run_demo("letters", tmp_path / "new", 0, rate, print)
    assert not (tmp_path / "new").exists()


def test_interrupted_demo_goes_on_to_the_same_result(finished, tmp_path, monkeypatch):
    """Stopped in the middle of the second training and again between two stages."""
    write = Log.write

    def write_and_stop(self, record):
        write(self, record)
        if self.path.parent.name == "prism-mcl" and record["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    def stop_at_the_oracle(line):
        if "4/4" in line:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Log, "write", write_and_stop)
        with pytest.raises(DemoStopped, match="same command goes on") as stopped:
            run_demo("letters", tmp_path, 0, 0.5, print)
    assert stopped.value.signal == signal.SIGTERM
    assert (tmp_path / "prism-mcl" / "checkpoint.safetensors").is_file()
    with pytest.raises(DemoStopped):
        run_demo("letters", tmp_path, 0, 0.5, stop_at_the_oracle)
    out, expected, _ = finished
    result = run_demo("letters", tmp_path, 0, 0.5, print)
    assert result["seconds"] is None
    assert without_time(result) == without_time(expected)
    for file in ("samples.csv", "prism-mcl/metrics.jsonl", "pictures/retrieval-refract.png"):
        assert (tmp_path / file).read_bytes() == (out / file).read_bytes()


def test_number_of_threads_is_given_back(tmp_path):
    threads = torch.get_num_threads()

    def stop(line):
        assert torch.get_num_threads() == 1
        raise KeyboardInterrupt

    try:
        torch.set_num_threads(2)
        with pytest.raises(DemoStopped):
            run_demo("letters", tmp_path, 0, 0.5, stop)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_right_labels_only(tmp_path):
    """With no wrong label the oracle is plain MCL: there is no gap, and nothing breaks."""
    result = run_demo("letters", tmp_path, 0, 0.0, print)
    assert result["models"]["oracle"] == result["models"]["mcl"]
    nothing = {"precision_at_1": None, "map_at_r": None}
    assert result["gap_closed"] == {"prism-mcl": nothing, "refract": nothing}
    assert "gap" not in summarise(result)


def test_summary_says_when_training_did_harm(finished):
    _, result, _ = finished
    score = {"raw-pixels": 0.6, "mcl": 0.5, "prism-mcl": 0.7, "refract": 0.75, "oracle": 0.8}
    models = {name: {"precision_at_1": value} for name, value in score.items()}
    text = summarise(result | {"models": models})
    assert "MCL is below raw pixels" in text
    assert "PRISM is below" not in text


def test_queries_are_of_different_classes(finished):
    from prism_dml.benchmark.demo_page import _queries

    test = demo._noisy_table("letters", 0, 0.5).split("test")
    queries = _queries(test, 0)
    assert len(queries) == len(np.unique(test.labels[queries])) == 8
    assert not np.array_equal(queries, _queries(test, 1))


def test_omniglot_brings_its_own_splits(monkeypatch):
    letters = demo._noisy_table("letters", 0, 0.0)
    monkeypatch.setattr(demo, "omniglot_table", lambda: replace(letters, clean_labels=None))
    table = demo._noisy_table("omniglot", 0, 0.25)
    learn = table.splits == "train"
    assert table.is_noisy[learn].mean() == 0.25
    assert not table.is_noisy[~learn].any()
