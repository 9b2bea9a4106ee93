"""The log of a run: one JSON object a line, nothing in it that a second run would not repeat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Log:
    """metrics.jsonl, cut back to what had been written at the checkpoint that a run goes on from.

    Args:
        path: the file.
        keep_bytes: length of what stays; 0 starts anew.
    """

    def __init__(self, path: Path, keep_bytes: int = 0) -> None:
        self.path = path
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

    def size(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size


class NoLog(Log):
    """What processes other than the first write to."""

    def __init__(self) -> None:
        pass

    def write(self, record: dict[str, Any]) -> None:
        """Nothing."""
