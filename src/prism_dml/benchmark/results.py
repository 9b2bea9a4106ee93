"""results.jsonl: a line for each finished run, safe against being killed while it is written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def read_records(file: Path) -> list[Record]:
    """The records of a file, none if there is no file; a last line that was cut short is removed from it.

    Raises:
        ValueError: another line is damaged.
    """
    if not file.exists():
        return []
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(file, whole)
    records: list[Record] = []
    for number, line in enumerate(
        content[:whole].split(b"\n")[:-1], start=1
    ):  # as bytes: names may hold U+2028
        try:
            record = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}, line {number}: damaged: {error}") from error
        if not (isinstance(record, dict) and isinstance(record.get("key"), str) and "error" in record):
            raise ValueError(f"{file}, line {number}: damaged: not the record of a run")
        records.append(record)
    return records


def append_record(file: Path, record: Record) -> None:
    """Add a line, which is on the disk when this returns."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record, ensure_ascii=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def done(records: list[Record]) -> dict[str, Record]:
    """The last successful record of each run, by key."""
    return {record["key"]: record for record in records if record["error"] is None}


def failed(records: list[Record]) -> dict[str, Record]:
    """The last record of each run that has never succeeded, by key."""
    succeeded = done(records)
    return {record["key"]: record for record in records if record["key"] not in succeeded}
