"""Where a run's log goes besides metrics.jsonl: TensorBoard, or Weights & Biases."""

from __future__ import annotations

import importlib
import uuid
from pathlib import Path
from typing import Any, Protocol

from prism_dml.training.config import Tracking


class Tracker(Protocol):
    """Takes the records of the log."""

    def write(self, record: dict[str, Any]) -> None:
        """A record with its "step"; texts and fields that are None are left out."""

    def close(self) -> None:
        """Nothing more comes."""


class _TensorBoard:
    """Event files in RUN/tensorboard; what was written after the checkpoint that a run goes on from is hidden."""

    def __init__(self, out: Path, step: int) -> None:
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self._writer = writer(str(out / "tensorboard"), purge_step=step + 1)

    def write(self, record: dict[str, Any]) -> None:
        for name, value in _numbers(record).items():
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self._writer.close()


class _WandB:
    """A run of Weights & Biases; its number is in RUN/wandb-id, by which it is gone on with."""

    def __init__(self, out: Path, settings: dict[str, Any], step: int) -> None:
        wandb = importlib.import_module("wandb")
        number = out / "wandb-id"
        if step == 0 or not number.exists():  # one may be of a run that came to no checkpoint
            number.write_text(uuid.uuid4().hex, encoding="utf-8")
        self._run = wandb.init(
            project="prism",
            name=out.resolve().name,
            id=number.read_text(encoding="utf-8"),
            resume="allow",
            dir=str(out),
            config=settings,
        )

    def write(self, record: dict[str, Any]) -> None:
        self._run.log(_numbers(record), step=record["step"])

    def close(self) -> None:
        self._run.finish()


def open_tracker(kind: Tracking, out: Path, settings: dict[str, Any], step: int) -> Tracker | None:
    """The tracker of a run, if one is asked for.

    Args:
        kind: which; the package of that name is installed, see `TrainConfig`.
        out: folder of the run.
        settings: of the run, JSON-able.
        step: finished steps; 0 for a new run.

    Raises:
        ValueError: it cannot be set up: no account, no network.
    """
    try:
        if kind == "tensorboard":
            return _TensorBoard(out, step)
        return _WandB(out, settings, step) if kind == "wandb" else None
    except Exception as error:  # what wandb raises is its own, and no OSError even without a network
        raise ValueError(f"{kind} cannot be set up: {error}") from error


def _numbers(record: dict[str, Any]) -> dict[str, float]:
    """What can be drawn."""
    return {k: v for k, v in record.items() if k != "step" and isinstance(v, int | float)}
