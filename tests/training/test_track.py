"""The log of a run in TensorBoard and in Weights & Biases, whose client has a stand-in here: it wants an account."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prism_dml.training import TrainConfig, loop, train
from prism_dml.training import config as module


def logged(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def as_pairs(records: list[dict[str, Any]]) -> list[tuple[str, int, float]]:
    return sorted((k, r["step"], round(v, 5)) for r in records for k, v in r.items() if k != "step")


def test_tensorboard_shows_the_log_of_a_run_that_went_on(table, settings, tmp_path: Path) -> None:
    options = {"log_every": 2, "checkpoint_every": 4, "validate_every": 4, "track": "tensorboard"}
    out = tmp_path / "run"
    stopped_after(table, settings(steps=12, **options), out, 6)
    train(table, settings(steps=12, **options), out, resume=True)
    shown = in_tensorboard(out)
    assert shown == as_pairs(logged(out))
    assert {"loss", "validation_precision_at_1"} <= {tag for tag, _, _ in shown}


def in_tensorboard(out: Path) -> list[tuple[str, int, float]]:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    shown = events.EventAccumulator(str(out / "tensorboard"))
    shown.Reload()
    return sorted(
        (tag, event.step, round(event.value, 5))
        for tag in shown.Tags()["scalars"]
        for event in shown.Scalars(tag)
    )


def stopped_after(table: Any, config: TrainConfig, out: Path, step: int) -> None:
    """A run that fails in the step after, as if the machine had gone."""
    with pytest.MonkeyPatch.context() as patch:
        steps = iter(range(step))

        def fails(*_: Any) -> Any:
            next(steps)
            return real(*_)

        real = loop._step_seed
        patch.setattr(loop, "_step_seed", fails)
        with pytest.raises(StopIteration):
            train(table, config, out)


class Client:
    """What is used of wandb."""

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []
        self.records: list[dict[str, Any]] = []
        self.finished = 0

    def init(self, **options: Any) -> Any:
        self.started.append(options)
        return SimpleNamespace(log=self._log, finish=self._finish)

    def _log(self, record: dict[str, float], step: int) -> None:
        self.records.append({"step": step, **record})

    def _finish(self) -> None:
        self.finished += 1


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    """Stands in for wandb."""
    client = Client()
    monkeypatch.setitem(sys.modules, "wandb", client)
    monkeypatch.setattr(module, "find_spec", lambda name: name)
    return client


def test_weights_and_biases_gets_the_log_and_goes_on_with_its_run(
    table, settings, tmp_path: Path, client: Client
) -> None:
    out = tmp_path / "run"
    options = {"steps": 8, "log_every": 2, "checkpoint_every": 4, "validate_every": 4, "track": "wandb"}
    stopped_after(table, settings(**options), out, 5)
    train(table, settings(**options), out, resume=True)
    first, second = client.started
    assert first["id"] == second["id"] and first["resume"] == "allow" and first["project"] == "prism"
    assert first["name"] == "run" and first["config"]["steps"] == 8 and client.finished == 2
    assert as_pairs(client.records) == as_pairs(logged(out))


def test_what_cannot_be_tracked_is_one_line(
    table, settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"wandb is not installed: pip install 'prism-dml\[wandb\]'"):
        settings(track="wandb")
    monkeypatch.setattr(module, "find_spec", lambda name: name)

    def no_account(**_: Any) -> None:
        raise RuntimeError("api_key not configured")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=no_account))
    with pytest.raises(ValueError, match="wandb cannot be set up: api_key not configured"):
        train(table, settings(track="wandb", steps=2), tmp_path / "run")


@pytest.mark.parametrize("fails", ["log", "finish"])
def test_a_tracker_that_fails_does_not_end_the_run(
    fails: str, table, settings, tmp_path: Path, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise RuntimeError("no connection")

    setattr(client, f"_{fails}", failing)
    result = train(table, settings(steps=4, log_every=2, track="wandb"), tmp_path / "run")
    assert result["steps"] == 4 and {line["step"] for line in logged(tmp_path / "run")} >= {2, 4}
    (said,) = [message for message in caplog.messages if "no connection" in message]
    assert "from here on the log goes to" in said


@pytest.mark.parametrize("track", ["wandb", "tensorboard"])
def test_a_run_begun_anew_is_another_run(track: str, table, settings, tmp_path: Path, client: Client) -> None:
    """One that came to no checkpoint leaves nothing that the next one in its folder goes on with."""
    out, options = tmp_path / "run", {"steps": 6, "checkpoint_every": 6, "validate_every": 6, "track": track}
    stopped_after(table, settings(log_every=1, **options), out, 3)
    train(table, settings(log_every=2, **options), out)
    if track == "tensorboard":
        assert in_tensorboard(out) == as_pairs(logged(out))
    else:
        first, second = client.started
        assert first["id"] != second["id"]
