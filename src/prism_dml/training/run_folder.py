"""A run's folder: whether a run may begin or go on there, and that no other does at the same time."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prism_dml.files import held, refuse_unwritable
from prism_dml.models.files import CHECKPOINT
from prism_dml.training.config import TrainConfig
from prism_dml.training.result import RUN, read_run
from prism_dml.training.shortage import explained

WAIT = 10.0
"""Seconds in which the decoding processes of a killed run notice that it is gone, which may hold its lock too."""

WITHOUT_EFFECT = {
    "devices", "shard_bank", "workers", "max_unreadable", "checkpoint_every", "max_bad_steps", "track",
}  # fmt: skip
"""Settings of which a run may go on with others: they are of who computes, what is kept on the way, who is told of it,
and when a run gives up, not of what is learned."""


def refuse_other_run(out: Path, resume: bool) -> None:
    """ValueError if a folder holds a run that is not to go on, or, to `resume`, none that can."""
    has_checkpoint, has_result = (out / CHECKPOINT).exists(), (out / RUN).exists()
    if not resume and (has_checkpoint or has_result):
        raise ValueError(f"{out} already holds a run: take another folder, or go on with --resume")
    if resume and has_result and not has_checkpoint:
        steps = read_run(out)["result"]["steps"]
        raise ValueError(
            f"the run in {out} is finished, after {steps:,} steps: there is nothing to go on with"
        )
    if resume and not has_checkpoint:
        raise ValueError(f"there is no checkpoint to go on from in {out}")


def refuse_other_settings(out: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    """ValueError if what the run in a folder was begun with is not what it would go on with, as far as known."""
    then = asdict(TrainConfig()) | then  # an earlier version did not have all settings
    changed = [key for key in now if key not in WITHOUT_EFFECT and then.get(key) != now[key]]
    if changed:
        raise ValueError(f"{out} holds a run with other settings or data: {', '.join(changed)}")


@contextmanager
def holding(out: Path, resume: bool) -> Iterator[None]:
    """Make a run's folder, and keep other runs out of it; the system lets them in again however this process ends.

    Raises:
        ValueError: another run is at work there, or see `refuse_other_run`.
        OSError: one line, if the folder cannot be written to.
    """
    refuse_unwritable(out / RUN, make_folder=True)
    with held(out, "another run", WAIT):
        refuse_other_run(out, resume)  # another may have ended meanwhile
        yield


def _hear_no_more_of_children() -> None:
    """Torch raises, wherever we are by then, at each child that ends once a decoding process was killed."""
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


@contextmanager
def one_line_if_short(out: Path) -> Iterator[None]:
    """Turn what `explained` knows into its one line, with where the run in `out` can be gone on with."""
    try:
        yield
    except (RuntimeError, MemoryError, ConnectionResetError) as error:
        known, checkpoint = explained(error), out / CHECKPOINT
        if known is None:
            raise
        if isinstance(known, OSError):
            _hear_no_more_of_children()
        hint = f"; --resume goes on from {checkpoint}, with fewer workers too" if checkpoint.exists() else ""
        raise type(known)(f"{known}{hint}") from error
