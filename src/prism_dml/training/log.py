"""The log of a run: one JSON object a line, nothing in it that a second run would not repeat."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from prism_dml.training.config import Tracking
from prism_dml.training.track import Tracker, open_tracker

logger = logging.getLogger("prism_dml")


class Log:
    """metrics.jsonl, cut back to what had been written at the checkpoint that a run goes on from.

    Args:
        path: the file.
        keep_bytes: length of what stays; 0 starts anew.
        tracker: gets each record, too, until the log is left.
    """

    def __init__(self, path: Path, keep_bytes: int = 0, tracker: Tracker | None = None) -> None:
        self.path, self.tracker = path, tracker
        with path.open("ab") as file:
            file.truncate(min(keep_bytes, file.tell()))  # a longer one would be filled up with zeros

    def write(self, record: dict[str, Any]) -> None:
        """Append a line; fields that are None are left out. OSError, one line, if it cannot be written."""
        known = {key: value for key, value in record.items() if value is not None}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(known) + "\n")
        except OSError as error:  # a full disk does not say which file it was
            raise OSError(f"{self.path} cannot be written: {error.strerror or error}") from error
        self._tell("write", known)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *error: object) -> None:
        self._tell("close")

    def _tell(self, what: str, *arguments: Any) -> None:
        """To the tracker, which must not end the run: metrics.jsonl has all of it."""
        if self.tracker is None:
            return
        try:
            getattr(self.tracker, what)(*arguments)
        except Exception as error:  # what trackers raise has no kind in common
            logger.warning("from here on the log goes to %s alone: %s", self.path, error)
            self.tracker = None

    def size(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size


def open_log(out: Path, keep_bytes: int, track: Tracking, settings: dict[str, Any], step: int) -> Log:
    """The log of the run in a folder, which goes on after so many steps; see `Log` and `open_tracker`."""
    return Log(out / "metrics.jsonl", keep_bytes, open_tracker(track, out, settings, step))


class NoLog(Log):
    """What processes other than the first write to."""

    def __init__(self) -> None:
        self.tracker = None

    def write(self, record: dict[str, Any]) -> None:
        """Nothing."""
