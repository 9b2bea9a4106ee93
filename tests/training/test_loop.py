import itertools
import json
import math
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from prism_dml.data import Augment, open_images
from prism_dml.data.table import BytesImages
from prism_dml.methods import beliefs, refract
from prism_dml.methods.base import StepResult
from prism_dml.methods.mcl import PrismMCL
from prism_dml.methods.registry import METHODS, find_method
from prism_dml.models import Embedder, load
from prism_dml.models.files import CHECKPOINT
from prism_dml.retrieval import retrieval_metrics
from prism_dml.selection.mistakes import AnyAlike
from prism_dml.training import RunStopped, loop, train
from prism_dml.training.measure import embed_all, validate
from prism_dml.training.stop import StopRequest


def log_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def left_behind(out: Path) -> dict[str, bytes]:
    """Every file of a run."""
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def train_until(step: int, *arguments, number: int = signal.SIGTERM, resume: bool = False) -> RunStopped:
    """Train, and get a signal in the given step of this session, as if a person had sent it."""
    original, calls = loop.Tally.add, []

    def add(self, *counted) -> None:
        calls.append(0)
        if len(calls) == step:
            signal.raise_signal(number)
        original(self, *counted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Tally, "add", add)
        with pytest.raises(RunStopped) as stopped:
            train(*arguments, resume=resume)
    return stopped.value


@pytest.fixture
def final_state(monkeypatch: pytest.MonkeyPatch):
    """The state of method and optimiser at each checkpoint, the last one included: a finished run removes it."""
    states = []
    original = loop.save_checkpoint

    def save(folder, modules, optimizer, notes):
        original(folder, modules, optimizer, notes)
        states.append(load_file(folder / CHECKPOINT))

    monkeypatch.setattr(loop, "save_checkpoint", save)
    return states


@pytest.mark.parametrize("method", ["prism-mcl", "prism-soft-triple"])
def test_the_same_seed_gives_the_same_run(method: str, table, settings, tmp_path: Path) -> None:
    config = settings(method=method, noise_rate="auto")
    results = [train(table, config, tmp_path / name) for name in "ab"]
    assert results[0] == results[1]
    one, other = left_behind(tmp_path / "a"), left_behind(tmp_path / "b")
    assert one == other
    assert set(one) >= {"metrics.jsonl", "run.json", "samples.parquet"} and CHECKPOINT not in one
    train(table, settings(method=method, noise_rate="auto", seed=1), tmp_path / "c")
    assert left_behind(tmp_path / "c")["metrics.jsonl"] != one["metrics.jsonl"]


@pytest.mark.parametrize(
    "options, stops",
    [
        ({"noise_rate": "auto", "augment": "drawing"}, (1,)),
        ({"method": "prism-mcl", "threshold": "smooth"}, (5, 3)),
        ({"method": "prism-mcl", "similarity": "vmf", "threshold": "top-r", "optimizer": "adam"}, (13,)),
        ({"method": "prism-soft-triple", "similarity": "proxy", "validation": 0.0}, (6,)),
        ({"method": "mcl", "cache": "stream", "workers": 0}, (7,)),
        ({"method": "oracle", "precision": "bf16-mixed"}, (4,)),
        ({"method": "co-teaching-plus", "rise_epochs": 1}, (9,)),
        ({"method": "co-teaching-t", "rise_epochs": 1}, (4,)),
        ({"method": "f-correction", "steps": 7}, (3, 4, 5)),
        ({"method": "sub-centre-arcface", "precision": "bf16-mixed"}, (6,)),
        ({"method": "knn-denoising"}, (9,)),
        ({"method": "refract", "precision": "bf16-mixed", "noise_rate": "auto"}, (3, 9)),
        ({"method": "prism-prototypes", "noise_rate": "auto", "bank_size": 20}, (8,)),
    ],
)
def test_stopped_and_resumed_is_never_stopped(
    options, stops, table, settings, final_state, tmp_path: Path
) -> None:
    config = settings(**options)
    expected = train(table, config, tmp_path / "whole")
    whole = final_state[-1]
    for number, step in enumerate(stops):
        train_until(step, table, config, tmp_path / "cut", resume=number > 0)
        assert (tmp_path / "cut" / CHECKPOINT).is_file() and not (tmp_path / "cut" / "run.json").exists()
    assert train(table, config, tmp_path / "cut", resume=True) == expected
    assert whole.keys() == final_state[-1].keys()
    for key, value in whole.items():
        torch.testing.assert_close(final_state[-1][key], value, rtol=0, atol=0, equal_nan=True, msg=key)
    assert left_behind(tmp_path / "whole") == left_behind(tmp_path / "cut")


def test_what_was_logged_after_the_checkpoint_is_logged_once(table, settings, monkeypatch, tmp_path: Path):
    """A crash, unlike a stop, leaves a log that is ahead of the checkpoint."""
    config = settings(checkpoint_every=4, log_every=1)
    train(table, config, tmp_path / "whole")
    original = PrismMCL.forward
    calls = []

    def crash(self, *batch):
        calls.append(0)
        if len(calls) == 7:
            raise MemoryError("crash")
        return original(self, *batch)

    monkeypatch.setattr(PrismMCL, "forward", crash)
    with pytest.raises(MemoryError):
        train(table, config, tmp_path / "cut")
    assert log_of(tmp_path / "cut")[-1]["step"] == 6
    train(table, config, tmp_path / "cut", resume=True)
    assert left_behind(tmp_path / "whole") == left_behind(tmp_path / "cut")


def test_a_lost_log_is_not_filled_up_with_zeros(table, settings, tmp_path: Path) -> None:
    train_until(5, table, settings(), tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    train(table, settings(), tmp_path / "run", resume=True)
    assert log_of(tmp_path / "run")[-1]["step"] == 14


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_says_what_asked_and_where_to_go_on(number, table, settings, tmp_path) -> None:
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    stopped = train_until(3, table, settings(), tmp_path / "run", number=number)
    assert f"{signal.Signals(number).name}: stopped after step 3; --resume" in str(stopped)
    assert stopped.signal == number and isinstance(stopped, KeyboardInterrupt)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_stop_in_the_last_step_finishes_the_run(table, settings, monkeypatch, tmp_path: Path) -> None:
    original, calls = loop.Tally.add, []

    def add(self, loss, kept, index) -> None:
        calls.append(0)
        if len(calls) == 14:
            signal.raise_signal(signal.SIGTERM)
        original(self, loss, kept, index)

    monkeypatch.setattr(loop.Tally, "add", add)
    assert train(table, settings(), tmp_path / "run")["steps"] == 14
    assert not (tmp_path / "run" / CHECKPOINT).exists()


def test_a_signal_between_two_looks_at_it_leaves_a_checkpoint(table, settings, monkeypatch, tmp_path) -> None:
    class Late(StopRequest):
        looks = 0

        @property
        def signal(self):
            self.looks += 1
            return signal.SIGTERM if self.looks > 5 else None

        @signal.setter
        def signal(self, value):
            pass

        def __bool__(self):
            return self.signal is not None

    monkeypatch.setattr(loop, "StopRequest", Late)
    with pytest.raises(RunStopped) as stopped:
        train(table, settings(checkpoint_every=1000), tmp_path / "run")
    assert (tmp_path / "run" / CHECKPOINT).exists(), str(stopped.value)


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop and stop.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_an_existing_run_is_not_overwritten(table, settings, tmp_path: Path) -> None:
    train_until(3, table, settings(), tmp_path / "run")
    before = left_behind(tmp_path / "run")
    with pytest.raises(ValueError, match="already holds a run"):
        train(table, settings(), tmp_path / "run")
    assert left_behind(tmp_path / "run") == before
    train(table, settings(), tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match="already holds a run"):
        train(table, settings(), tmp_path / "run")
    with pytest.raises(ValueError, match="run is finished, after 14 steps"):
        train(table, settings(), tmp_path / "run", resume=True)


def test_resuming_nothing(table, settings, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no checkpoint"):
        train(table, settings(), tmp_path / "run", resume=True)


def test_resuming_with_other_settings_or_data(table, settings, tmp_path: Path) -> None:
    train_until(3, table, settings(), tmp_path / "run")
    before = left_behind(tmp_path / "run")
    for change in ({"lr": 0.1}, {"steps": 20}, {"noise_rate": 0.5}, {"seed": 3}, {"embedding_dim": 9},
                   {"method": "mcl"}, {"bank_size": 51}):  # fmt: skip
        with pytest.raises(ValueError, match="holds a run with other settings or data: "):
            train(table, settings(**change), tmp_path / "run", resume=True)
    wrong = table.labels.copy()
    wrong[[0, 1]] = wrong[[9, 9]]
    fewer = table.select(table.labels != 0)  # a class less: its memory has another size
    for data in (table.select(np.arange(len(table)) != 5), replace(table, labels=wrong), fewer):
        with pytest.raises(ValueError, match="holds a run with other settings or data: .*data"):
            train(data, settings(), tmp_path / "run", resume=True)
    assert left_behind(tmp_path / "run") == before, "a failed attempt must not harm the run"


def test_what_changes_nothing_of_what_is_learned_may_change(table, settings, tmp_path: Path) -> None:
    """A run that was killed for memory goes on with fewer decoders."""
    config = settings(cache="stream", workers=0)
    train(table, config, tmp_path / "whole")
    free = {"workers": 2, "max_unreadable": 0.5, "checkpoint_every": 3, "max_bad_steps": 2}
    train_until(6, table, settings(cache="stream", **free), tmp_path / "cut")
    train(table, config, tmp_path / "cut", resume=True)
    assert left_behind(tmp_path / "whole") == left_behind(tmp_path / "cut")


def test_a_run_that_ended_in_too_many_unreadable_images_is_finished(table, settings, tmp_path: Path) -> None:
    """None of the batches had it: it is met when all images are judged."""
    options = {"cache": "stream", "validation": 0.0, "steps": 2, "log_every": 1}
    seen = set()
    with pytest.MonkeyPatch.context() as patch:
        add = loop.Tally.add
        patch.setattr(loop.Tally, "add", lambda *a: (seen.update(a[3].tolist()), add(*a)))
        train(table, settings(**options), tmp_path / "seen")
    images = [table.images.images.read(i) for i in range(len(table))]
    images[min(set(range(96)) - seen)] = b"no image"
    broken = replace(table, images=BytesImages(images))
    with pytest.raises(ValueError, match="1 of 96 images are unreadable"):
        train(broken, settings(**options), tmp_path / "run")
    log = log_of(tmp_path / "run")
    assert train(broken, settings(**options, max_unreadable=0.1), tmp_path / "run", resume=True)["steps"] == 2
    assert (
        log_of(tmp_path / "run") == log and len(pd.read_parquet(tmp_path / "run" / "samples.parquet")) == 95
    )


@pytest.fixture
def untouched(table):
    """The same data, of which no image may be looked at."""
    return replace(table, images=replace(table.images, readable=0))


def test_a_folder_that_cannot_be_written_to_is_found_before_images_are_read(
    untouched, settings, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="run.json cannot be written: Not a directory") as error:
        train(untouched, settings(), tmp_path / "file" / "run")
    assert "\n" not in str(error.value) and (tmp_path / "file").read_text() == "mine"


def test_what_a_run_cannot_go_on_with_is_found_before_images_are_read(
    table, untouched, settings, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="no checkpoint to go on from"):
        train(untouched, settings(), tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()
    train_until(3, table, settings(), tmp_path / "run")
    with pytest.raises(ValueError, match="other settings or data: lr"):
        train(untouched, settings(lr=0.1), tmp_path / "run", resume=True)
    checkpoint = tmp_path / "run" / CHECKPOINT
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged"):
        train(untouched, settings(), tmp_path / "run", resume=True)


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "half of the header", "a bit"])
def test_a_damaged_checkpoint_is_one_clear_line(damage, table, settings, tmp_path: Path) -> None:
    train_until(3, table, settings(), tmp_path / "run")
    path = tmp_path / "run" / CHECKPOINT
    data = path.read_bytes()
    flipped = data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]
    kinds = {"truncated": data[:-100], "empty": b"", "garbage": b"x" * 5000, "a bit": flipped}
    path.write_bytes(kinds.get(damage, data[:50]))
    with pytest.raises(ValueError, match="damaged") as error:
        train(table, settings(), tmp_path / "run", resume=True)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch):
    """Multiplies the images (0) or the loss (1) of the given steps of this session by a value."""

    def start(value: float, steps: set[int], what: int = 1, method: str = "prism-mcl") -> None:
        original, calls = find_method(method).forward, []

        def forward(self, images, labels, index):
            calls.append(0)
            factor = value if len(calls) in steps else 1.0
            loss, kept = original(self, images * (1.0 if what else factor), labels, index)
            return StepResult(loss * (factor if what else 1.0), kept)

        monkeypatch.setattr(find_method(method), "forward", forward)

    return start


def test_too_many_bad_steps_in_a_row_keep_the_last_checkpoint(
    table, settings, spoil, monkeypatch, tmp_path: Path
) -> None:
    config = settings(checkpoint_every=3, max_bad_steps=2)
    train(table, config, tmp_path / "whole")
    spoil(math.inf, {8, 9})
    with pytest.raises(ValueError, match="not finite in 2 steps in a row, up to step 9: a lower lr") as error:
        train(table, config, tmp_path / "run")
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    train(table, config, tmp_path / "run", resume=True)
    assert left_behind(tmp_path / "whole") == left_behind(tmp_path / "run")


@pytest.mark.parametrize("method", ["prism-mcl", "prism-prototypes"])
@pytest.mark.parametrize("value, what", [(math.nan, 0), (math.nan, 1), (math.inf, 1), (1e30, 1)])
def test_a_bad_step_is_left_out_as_if_it_had_not_been(
    value, what, method, table, settings, spoil, final_state, tmp_path: Path
) -> None:
    """Images without a number spoil batch statistics and thresholds; with a loss of 1e30, gradients overflow."""
    options = {"log_every": 1, "checkpoint_every": 1, "method": method, "max_bad_steps": 3}
    spoil(value, {5, 6, 9, 10}, what, method)
    train(table, settings(**options), tmp_path / "run")

    def same(step: int) -> bool:
        return all(
            torch.equal(value.nan_to_num(), final_state[step - 2][key].nan_to_num())
            for key, value in final_state[step - 1].items()
            if not key.startswith("guard/")
        )

    assert [step for step in range(2, 15) if same(step)] == [5, 6, 9, 10]
    log = [line for line in log_of(tmp_path / "run") if "rejected" in line or "skipped_steps" in line]
    assert [line.get("skipped_steps", 0) for line in log] == [0] * 4 + [1, 2, 2, 2, 3, 4, 4, 4, 4, 4]
    assert all(math.isfinite(number) for line in log for number in line.values())
    assert "loss" not in log[4] and "loss" in log[6]
    model = load(tmp_path / "run").state_dict()
    assert all(value.isfinite().all() for value in model.values())


@pytest.mark.parametrize(
    ("method", "learns"), [("refract", True), ("prism-prototypes", True), ("prism-mcl", False)]
)
def test_a_batch_that_keeps_nothing(
    method, learns, table, settings, final_state, monkeypatch, tmp_path
) -> None:
    """Refract learns from doubtful labels, too; without an update it would judge the same embedding ever again."""
    original = find_method(method).forward

    def forward(self, images, labels, index):
        loss, kept = original(self, images, labels, index)
        return StepResult(loss, torch.zeros_like(kept))

    monkeypatch.setattr(find_method(method), "forward", forward)
    monkeypatch.setattr(find_method(method), "decided", lambda self: None)  # the log is of the batches
    train(table, settings(method=method, log_every=1, checkpoint_every=1), tmp_path / "run")
    weights = [state["method/embedder.head.weight"] for state in final_state]
    assert [not torch.equal(*pair) for pair in itertools.pairwise(weights)] == [learns] * 13
    lines = [line for line in log_of(tmp_path / "run") if "rejected" in line]
    assert all(line["rejected"] == 1 and ("loss" in line) == learns for line in lines)


@pytest.mark.parametrize("method", ["contrastive", "refract"])
def test_validation_images_without_a_readable_pair(method, table, settings, tmp_path: Path) -> None:
    """What there is to find by each other is only known once the images have been opened: the last model is taken."""
    held = np.flatnonzero(table.splits == "train")[[2, 3, 10]]  # two of a class, one of another
    images = [table.images.images.read(i) for i in range(len(table))]
    images[held[0]] = b"no image"
    splits = table.splits.copy()
    splits[held] = "val"
    table = replace(table, images=BytesImages(images), splits=splits)
    config = settings(method=method, steps=4, validate_every=2, max_unreadable=0.4)
    assert train(table, config, tmp_path / "run")["validation_precision_at_1"] is None
    assert "validation_precision_at_1" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    load(tmp_path / "run")


def test_bad_steps_are_counted_through_a_stop(table, settings, spoil, monkeypatch, tmp_path: Path) -> None:
    config = settings(log_every=1, max_bad_steps=3, noise_rate=0.0)  # no step without a decision
    spoil(math.nan, {3, 5, 6, 7})
    with pytest.raises(ValueError, match="up to step 7"):
        train(table, config, tmp_path / "whole")
    monkeypatch.undo()
    original, calls = loop.RunProgress.step, []

    def show(self, images) -> None:
        calls.append(0)
        if len(calls) == 6:
            signal.raise_signal(signal.SIGTERM)
        original(self, images)

    monkeypatch.setattr(loop.RunProgress, "step", show)
    spoil(math.nan, {3, 5, 6})
    with pytest.raises(RunStopped, match="step 6"):
        train(table, config, tmp_path / "cut")
    assert log_of(tmp_path / "cut")[-1]["skipped_steps"] == 3
    spoil(math.nan, {1})
    with pytest.raises(ValueError, match="up to step 7"):
        train(table, config, tmp_path / "cut", resume=True)


def test_a_step_with_all_rejected_changes_nothing_and_is_logged(
    table, settings, monkeypatch, final_state, tmp_path: Path
) -> None:
    original, calls = PrismMCL._trusted, []

    def trusted(self, embeddings, labels, index):
        calls.append(0)
        kept = original(self, embeddings, labels, index)
        return torch.zeros_like(kept) if len(calls) in (5, 6) else kept

    monkeypatch.setattr(PrismMCL, "_trusted", trusted)
    train(table, settings(log_every=1, checkpoint_every=1, weight_decay=0.1), tmp_path / "run")
    names = {
        key
        for key in final_state[0]
        if key.startswith(("optimizer/", "method/")) and "running" not in key and "num_batches" not in key
        and "selector.rule" not in key and "selector.batches" not in key and "estimator" not in key
    }  # fmt: skip
    assert any("exp_avg" in name for name in names) and any("bank" in name for name in names)

    def same(step: int) -> bool:
        return all(torch.equal(final_state[step - 1][key], final_state[step - 2][key]) for key in names)

    assert [same(step) for step in (4, 5, 6, 7)] == [False, True, True, False]
    lines = {line["step"]: line for line in log_of(tmp_path / "run") if "rejected" in line}
    assert lines[5]["rejected"] == 1 and "loss" not in lines[5] and lines[5]["clean_recall"] == 0
    assert "purity" not in lines[5] and lines[7]["rejected"] < 1 and lines[14]["loss"] > 0


def test_validation_and_test_classes_are_never_learned_from(table, settings, monkeypatch, tmp_path) -> None:
    """Images of the test split raise when they are read (see the table)."""
    learned, sources = set(), []
    original, opened = PrismMCL.forward, loop.open_sources

    def forward(self, images, labels, index):
        learned.update(index.tolist())
        return original(self, images, labels, index)

    def open_sources(*arguments):
        sources.append(opened(*arguments))
        return sources[0]

    monkeypatch.setattr(PrismMCL, "forward", forward)
    monkeypatch.setattr(loop, "open_sources", open_sources)
    train(table, settings(), tmp_path / "run")
    (part,) = sources
    training, validation = part.train.table, part.validation.table
    assert learned == set(range(len(training))), "every sample of an epoch"
    assert not set(training.classes) & set(validation.classes)
    assert not set(training.paths) & set(validation.paths)
    assert set(training.paths) | set(validation.paths) == set(table.split("train").paths)
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["classes"] == training.classes and "of the test" not in run["classes"]


def test_a_split_for_validation_takes_no_classes_from_training(table, settings, tmp_path: Path) -> None:
    held = (table.splits == "train") & (table.labels < 2)
    table = replace(table, splits=np.where(held, "val", table.splits))
    result = train(table, settings(steps=4, validate_every=4), tmp_path / "run")
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["classes"] == table.split("train").classes
    assert not set(table.classes[:2]) & set(run["classes"])
    assert 0 <= result["validation_precision_at_1"] <= 1
    assert "validation_precision_at_1" not in train(table, settings(steps=4, validation=0), tmp_path / "none")


@pytest.mark.parametrize("method", ["prism-mcl", "refract"])
def test_the_best_checkpoint_on_validation_is_the_model(
    method, table, settings, monkeypatch, tmp_path: Path
) -> None:
    scores, weights = iter([0.2, 0.9, 0.5]), []

    def scripted(embedder, images, ranks) -> float:
        measured = retrieval_metrics(embed_all(embedder, images), torch.from_numpy(images.table.labels))
        assert validate(embedder, images) == pytest.approx(measured["precision_at_1"])
        weights.append({key: value.clone() for key, value in embedder.state_dict().items()})
        return next(scores)

    monkeypatch.setattr(loop, "validate", scripted)
    result = train(table, settings(method=method), tmp_path / "run")
    assert result["validation_precision_at_1"] == 0.9
    lines = [line for line in log_of(tmp_path / "run") if "validation_precision_at_1" in line]
    assert [line["step"] for line in lines] == [5, 10, 14]
    saved = load_file(next((tmp_path / "run" / "model").glob("*.safetensors")))
    assert all(torch.equal(saved[key], weights[1][key]) for key in saved)
    assert any(not torch.equal(saved[key], weights[2][key]) for key in saved)


def test_without_validation_the_last_is_the_model(table, settings, final_state, tmp_path: Path) -> None:
    result = train(table, settings(validation=0.0), tmp_path / "run")
    assert "validation_precision_at_1" not in result
    saved = load_file(next((tmp_path / "run" / "model").glob("*.safetensors")))
    for key, value in saved.items():
        assert torch.equal(value, final_state[-1][f"method/embedder.{key}"])


@pytest.mark.parametrize("validation", [0.0, 0.3])
def test_the_embeddings_left_are_those_of_the_saved_model(
    validation, table, settings, final_state, tmp_path: Path
) -> None:
    """Of Refract, which scales what the network gives."""
    run = tmp_path / "run"
    train(table, settings(method="refract", validation=validation, steps=20), run)
    assert not torch.equal(final_state[-1]["method/scaling"], torch.eye(8)), "there was a look"
    model = load(run / "model")
    images = open_images(table.split("train"), 16, Augment("none"))
    expected = embed_all(model, images)
    left = pd.read_parquet(run / "embeddings.parquet")
    rows = [int(path.removesuffix(".png")) for path in left["path"]]
    assert sorted(rows) == list(range(len(expected)))
    torch.testing.assert_close(torch.tensor(np.stack(left["embedding"])), expected[rows], atol=1e-4, rtol=0)

    samples = pd.read_parquet(run / "samples.parquet").set_index("path")
    assert left["label_score"].notna().tolist() == left["path"].isin(samples.index).tolist()
    judged = left[left["label_score"].notna()].set_index("path")
    assert judged["label_score"].equals(samples.loc[judged.index, "clean_probability"].rename("label_score"))
    assert judged["suggested_label"].tolist() == samples.loc[judged.index, "suggested_label"].tolist()
    assert judged["suggested_score"].tolist() == samples.loc[judged.index, "suggested_probability"].tolist()
    assert judged["suggested_score"].between(0, 1).all()


def test_scores_that_are_no_probabilities_are_not_handed_over(table, settings, tmp_path: Path) -> None:
    train(table, settings(method="prism-mcl"), tmp_path / "run")
    assert "suggested_probability" not in pd.read_parquet(tmp_path / "run" / "samples.parquet")
    assert "label_score" not in pd.read_parquet(tmp_path / "run" / "embeddings.parquet")


def test_the_oracle_learns_from_the_clean_samples_only(table, settings, monkeypatch, tmp_path: Path) -> None:
    sources, opened = [], loop.open_sources

    def open_sources(*arguments):
        sources.append(opened(*arguments))
        return sources[0]

    monkeypatch.setattr(loop, "open_sources", open_sources)
    train(table, settings(method="oracle"), tmp_path / "run")
    given = dict(zip(table.paths, table.is_noisy, strict=True))
    assert not any(given[path] for path in sources[0].train.table.paths)
    assert any(given[path] for path in sources[0].validation.table.paths), (
        "validation never asks for the truth"
    )


def test_the_oracle_needs_the_truth(unlabelled, settings, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="true labels"):
        train(unlabelled, settings(method="oracle"), tmp_path / "run")


def test_without_the_truth_nothing_is_said_of_it(unlabelled, settings, tmp_path: Path) -> None:
    result = train(unlabelled, settings(), tmp_path / "run")
    assert "judgement" not in result and result["last_decisions"] == {}
    assert not any("purity" in line or "clean_recall" in line for line in log_of(tmp_path / "run"))
    assert "clean_label" not in pd.read_parquet(tmp_path / "run" / "samples.parquet")


def test_samples_are_the_training_samples_in_order(table, settings, tmp_path: Path) -> None:
    result = train(table, settings(validation=0.0), tmp_path / "run")
    samples, part = pd.read_parquet(tmp_path / "run" / "samples.parquet"), table.split("train")
    assert samples["path"].tolist() == part.paths
    assert samples["label"].tolist() == [part.classes[k] for k in part.labels]
    assert samples["clean_label"].tolist() == [part.classes[k] for k in part.clean_labels]
    assert samples["clean_probability"].between(0, 1).all()
    assert set(samples["suggested_label"]) <= set(part.classes)
    kept, clean = samples["keep"].to_numpy(), ~part.is_noisy
    assert result["judgement"]["purity"] == pytest.approx((kept & clean).sum() / kept.sum())
    assert result["judgement"]["clean_recall"] == pytest.approx((kept & clean).sum() / clean.sum())
    right, wrong = (samples["clean_probability"].to_numpy()[chosen] for chosen in (clean, ~clean))
    above = (right[:, None] > wrong).mean() + (right[:, None] == wrong).mean() / 2
    assert result["judgement"]["auroc"] == pytest.approx(above)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs(method: str, table, settings, tmp_path: Path) -> None:
    result = train(table, settings(method=method, steps=4), tmp_path / "run")
    assert ("noise_rate_estimate" in result) == METHODS[method].selects
    assert (tmp_path / "run" / "samples.parquet").exists() == METHODS[method].selects


@pytest.mark.parametrize("method", ["co-teaching", "f-correction"])
@pytest.mark.parametrize("validation", [0.0, 0.2])
def test_both_networks_are_saved(
    method: str, validation: float, table, settings, final_state, tmp_path
) -> None:
    config = settings(method=method, steps=4, validation=validation, validate_every=100)
    train(table, config, tmp_path / "run")
    for folder, name in (("model", "embedder"), ("peer", "peer")):
        saved = load(tmp_path / "run" / folder).state_dict()
        assert all(
            torch.equal(value, final_state[-1][f"method/{name}.{key}"]) for key, value in saved.items()
        )


def test_a_method_of_two_rounds_trains_the_budget_twice(table, settings, monkeypatch, tmp_path: Path) -> None:
    method, happened, rates = find_method("f-correction"), [], []
    started, set_rate = method.on_round_start, loop.set_learning_rate

    def on_round_start(self, number, embed_all) -> None:
        assert embed_all(self.embedder).shape == (len(self.data.labels), 8)
        happened.append(number)
        started(self, number, embed_all)

    def set_learning_rate(optimizer, config, step) -> None:
        set_rate(optimizer, config, step)
        rates.append(optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(method, "on_round_start", on_round_start)
    monkeypatch.setattr(loop, "set_learning_rate", set_learning_rate)
    train(table, settings(method="f-correction", steps=8, validate_every=3, log_every=4), tmp_path / "run")
    assert happened == [0, 1] and len(rates) == 16 and rates[:8] == rates[8:]
    lines = log_of(tmp_path / "run")
    assert [line["step"] for line in lines if "loss" in line] == [4, 8, 12, 16]
    measured = [line["step"] for line in lines if "validation_precision_at_1" in line]
    assert measured == [9, 12, 15, 16], "the first round trains another network than the one to evaluate"


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_every_optimizer_and_precision(optimizer, precision, table, settings, tmp_path: Path) -> None:
    train(table, settings(optimizer=optimizer, precision=precision, steps=4), tmp_path / "run")
    saved = load_file(next((tmp_path / "run" / "model").glob("*.safetensors")))
    assert all(v.dtype == torch.float32 for v in saved.values() if v.is_floating_point())


def test_streamed_and_cached_runs_are_the_same_where_nothing_is_random(
    table, settings, tmp_path: Path
) -> None:
    for cache in ("memory", "stream"):
        train(table, settings(cache=cache, augment="none"), tmp_path / cache)
    assert log_of(tmp_path / "memory") == log_of(tmp_path / "stream")
    samples = [pd.read_parquet(tmp_path / cache / "samples.parquet") for cache in ("memory", "stream")]
    pd.testing.assert_frame_equal(*samples)


@pytest.mark.parametrize("method", ["prism-mcl", "knn-denoising", "refract"])
@pytest.mark.parametrize("validation", [0.0, 0.2])
def test_what_cannot_be_read_is_not_judged(method, validation, table, settings, tmp_path: Path) -> None:
    """A stream still has it, and it looks like nothing: of a fixed number of suspects it would be one."""
    images = [table.images.images.read(i) for i in range(len(table))]
    images[3] = images[17] = b"no image"
    broken = replace(table, images=BytesImages(images))
    config = {"method": method, "validation": validation, "max_unreadable": 0.1, "noise_rate": "auto"}
    result = train(broken, settings(**config, cache="stream"), tmp_path / "run")
    judged = pd.read_parquet(tmp_path / "run" / "samples.parquet")
    left = pd.read_parquet(tmp_path / "run" / "embeddings.parquet")
    assert not {"3.png", "17.png"} & {*judged["path"], *left["path"]}
    right = judged["label"] == judged["clean_label"]
    assert result["judgement"]["purity"] == pytest.approx(right[judged["keep"]].mean())
    if method == "refract":
        scores = judged.set_index("path")["clean_probability"]
        told = left[left["label_score"].notna()].set_index("path")["label_score"]
        assert told.to_dict() == scores.to_dict()


@pytest.mark.parametrize("reading", [{}, {"cache": "stream"}, {"cache": "stream", "workers": 2}])
def test_what_may_be_anything_is_hardly_drawn_after_a_look(reading, table, settings, tmp_path: Path) -> None:
    """However far ahead the images are read; and the same ones after a stop."""
    seen: list[np.ndarray | None] = []

    def judged(embeddings: torch.Tensor, labels: torch.Tensor, *_: object) -> beliefs.Judged:
        seen.append(None)
        classes, chances = beliefs.certain(labels)
        chances[1::2] = 0.1  # of every second sample nothing is known
        nothing = torch.zeros(len(labels))
        return beliefs.Judged(classes, chances, labels, chances[:, 0], nothing, 0.5, AnyAlike(0.5))

    def forward(self, images, labels, index, original=refract.Refract.forward):
        seen.append(index.numpy())
        return original(self, images, labels, index)

    config = settings(method="refract", steps=40, validation=0.0, **reading)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refract, "judge", judged)
        patch.setattr(refract.Refract, "forward", forward)
        train(table, config, tmp_path / "whole")
        whole = seen.copy()
        seen.clear()
        train_until(23, table, config, tmp_path / "cut")
        train(table, config, tmp_path / "cut", resume=True)
    first = next(number for number, index in enumerate(whole) if index is None)
    before, after = (
        np.concatenate([i for i in part if i is not None]) for part in (whole[:first], whole[first:])
    )
    assert 0.3 < (before % 2).mean() < 0.7 and len(after) > 10 * 12 and not (after % 2).any()
    assert len(np.unique(after)) == -(-len(table.split("train")) // 2)
    steps = [[i for i in part if i is not None] for part in (whole, seen)]
    np.testing.assert_array_equal(np.concatenate(steps[0]), np.concatenate(steps[1]))


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_proxies_have_a_learning_rate_of_their_own(optimizer: str, table, settings) -> None:
    from prism_dml.methods.base import TrainingSet
    from prism_dml.models import Embedder

    config = settings(method="soft-triple", optimizer=optimizer, lr=1e-3, proxy_lr=0.5, weight_decay=0.1)
    method = find_method("soft-triple")(
        Embedder("small", 8, image_size=16), TrainingSet(torch.arange(96) % 12, 12), config
    )
    made = loop.make_optimizer(method, config)
    network, proxies = made.param_groups
    assert [id(p) for p in proxies["params"]] == [id(p) for p in method.proxies()]
    assert {id(p) for p in network["params"]} == {id(p) for p in method.embedder.parameters()}
    assert type(made) is {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
    loop.set_learning_rate(made, config, 2)
    assert proxies["lr"] == pytest.approx(500 * network["lr"])
    assert (network["weight_decay"], proxies["weight_decay"]) == (0.1, 0.0)


def test_the_learning_rate_warms_up_and_falls_as_a_cosine(settings) -> None:
    config = settings(lr=0.5, steps=100, lr_warmup=10)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    optimizer.param_groups[0]["peak"] = config.lr
    rates = []
    for step in range(100):
        loop.set_learning_rate(optimizer, config, step)
        rates.append(optimizer.param_groups[0]["lr"])
    for step, rate in enumerate(rates):
        cosine = 0.25 * (1 + math.cos(math.pi * step / 100))
        assert rate == pytest.approx(cosine * min(1, (step + 1) / 10))
    loop.set_learning_rate(optimizer, settings(lr=0.5, lr_warmup=0), 0)
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a tiny backbone, as others would publish them."""
    file = tmp_path_factory.mktemp("published") / "resnet10t.safetensors"
    torch.manual_seed(123)
    save_file(timm.create_model("resnet10t", num_classes=0).state_dict(), file)
    return file


@pytest.mark.parametrize(
    "options",
    [
        {"method": "refract", "cache": "stream", "steps": 72},  # so many epochs that the features are judged
        {"method": "prism-mcl", "validation": 0.0},
        {"method": "co-teaching", "rise_epochs": 1, "validation": 0.0},
    ],
)
def test_a_frozen_backbone_sees_each_image_once(options, table, settings, published, monkeypatch, tmp_path):
    """And what is saved is a model of images all the same; a run that was stopped ends as one that was not."""
    seen, forward = [], timm.models.resnet.ResNet.forward

    def counted(self, images):
        seen.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(timm.models.resnet.ResNet, "forward", counted)
    config = settings(
        backbone="resnet10t", weights=str(published), freeze_backbone=True, image_size=32, **options
    )
    expected = train(table, config, tmp_path / "whole")
    assert sum(seen) - seen.count(1) == len(table.split("train").labels), "but for the tries at one of zeros"
    trained, given = (
        load_file(next((tmp_path / "whole" / "model").glob("*.safetensors"))),
        load_file(published),
    )
    assert all(torch.equal(trained[f"backbone.{name}"], value) for name, value in given.items())
    head = Embedder("resnet10t", 8, image_size=32, weights=published).head.weight
    assert not torch.equal(trained["head.weight"], head)

    handed_over = tmp_path / "whole" / "embeddings.parquet"
    if handed_over.is_file():
        rows = pd.read_parquet(handed_over)
        model = load(tmp_path / "whole")
        look = Augment("none", model.transform.mean, model.transform.std)
        images = open_images(table.split("train"), 32, look)
        by_path = dict(zip(images.table.paths, embed_all(model, images).numpy(), strict=True))
        assert len(rows) == len(by_path)
        for path, embedding in zip(rows["path"], rows["embedding"], strict=True):
            np.testing.assert_allclose(embedding, by_path[path], atol=1e-5)

    train_until(6, table, config, tmp_path / "cut")
    if options["method"] == "refract":
        assert load_file(tmp_path / "cut" / CHECKPOINT)["method/unlearned"].any(), "the features are judged"
    assert train(table, config, tmp_path / "cut", resume=True) == expected
    assert left_behind(tmp_path / "whole") == left_behind(tmp_path / "cut")


def test_unreadable_images_of_a_frozen_backbone(table, settings, published, tmp_path: Path) -> None:
    images = [table.images.images.read(i) for i in range(len(table))]
    images[3] = images[17] = b"no image"
    broken = replace(table, images=BytesImages(images))
    options = {"backbone": "resnet10t", "weights": str(published), "image_size": 32, "cache": "stream"}
    with pytest.raises(ValueError, match="2 of 96 images are unreadable, more than the share of 0.01"):
        train(broken, settings(freeze_backbone=True, validation=0, **options), tmp_path / "refused")
    train(
        broken, settings(freeze_backbone=True, validation=0, max_unreadable=0.1, **options), tmp_path / "run"
    )
    judged = pd.read_parquet(tmp_path / "run" / "samples.parquet")
    assert len(judged) == 94 and not {"3.png", "17.png"} & set(judged["path"])


def test_a_checkpoint_of_before_there_was_a_setting(table, settings, monkeypatch, tmp_path: Path) -> None:
    """It had the default then."""
    train_until(6, table, settings(), tmp_path / "run")
    original = loop.load_checkpoint

    def earlier(folder, modules, optimizer, check):
        def checked(notes):
            settings = {key: value for key, value in notes["settings"].items() if key != "freeze_backbone"}
            check({**notes, "settings": settings})

        return original(folder, modules, optimizer, checked)

    monkeypatch.setattr(loop, "load_checkpoint", earlier)
    assert train(table, settings(), tmp_path / "run", resume=True)["steps"] == 14
