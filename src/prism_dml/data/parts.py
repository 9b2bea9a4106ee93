"""Embeddings in parts: fixed ranges of rows, each a parquet file that appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prism_dml.data.corrections import table_fingerprint
from prism_dml.data.row_groups import ParquetImages
from prism_dml.data.table import ImageTable, SelectedImages
from prism_dml.files import replacing

MANIFEST = "manifest.json"
_FORMAT = "prism-dml embeddings"
_VERSION = 1
_NOTES = b"prism"
_OTHER = {
    "model": "of another model",
    "data": "of other data",
    "split": "of another split",
    "embedding_dim": "of another model",
    "rows": "of other data",
    "rows_per_part": "in parts of another size",
}


class DamagedPart(ValueError):
    """A part that is not what the job has written, or not whole."""


@dataclass(frozen=True)
class Job:
    """What is embedded, and how it is cut: equal jobs make equal parts."""

    model: str
    """Checksum of the model."""
    data: str
    """See `data_mark`."""
    split: str | None
    embedding_dim: int
    rows: int
    """Images, unreadable ones included."""
    rows_per_part: int

    def __post_init__(self) -> None:
        if self.rows_per_part < 1:
            raise ValueError(f"the rows of a part must be at least 1, not {self.rows_per_part}")

    @property
    def num_parts(self) -> int:
        """How many parts there are, the last one perhaps shorter."""
        return -(-self.rows // self.rows_per_part)

    @property
    def digest(self) -> str:
        """What its parts are marked with."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def rows_of(self, part: int) -> range:
        """The rows of the data that a part is about."""
        return range(part * self.rows_per_part, min((part + 1) * self.rows_per_part, self.rows))


def data_mark(table: ImageTable) -> str:
    """SHA-256 of paths, labels, true labels and, for parquet, where its images lie; pixels are not looked at."""
    digest = hashlib.sha256(table_fingerprint(table).encode())
    if table.clean_labels is not None:
        digest.update(table.clean_labels.tobytes())
    images = table.images.source if isinstance(table.images, SelectedImages) else table.images
    if isinstance(images, ParquetImages):
        digest.update(images.ranges.tobytes())
    return f"sha256:{digest.hexdigest()}"


def open_job(folder: Path, job: Job) -> None:
    """Begin a job in a folder, which is made, or go on with it there.

    Raises:
        ValueError: the folder holds another job, or its manifest is damaged.
        OSError: the manifest cannot be written.
    """
    if not (folder / MANIFEST).is_file():
        content = {"format": _FORMAT, "version": _VERSION, **asdict(job), "parts": job.num_parts}
        with replacing(folder / MANIFEST, _mark()) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    found = read_job(folder)  # another process may have been the last to write
    for field in fields(job):
        if getattr(found, field.name) != getattr(job, field.name):
            raise ValueError(
                f"{folder} holds embeddings {_OTHER[field.name]}: take another folder, or remove it"
            )


def holds_parts(folder: Path) -> bool:
    """Whether a folder is that of a job, finished or not."""
    return (folder / MANIFEST).is_file()


def read_job(folder: Path) -> Job:
    """The job of a folder; ValueError, one line, if its manifest cannot be read."""
    file = folder / MANIFEST
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise ValueError("it is of something else")
        if content["version"] != _VERSION:
            raise ValueError(f"its version is {content['version']}, this version of Prism reads {_VERSION}")
        return Job(**{field.name: content[field.name] for field in fields(Job)})
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no manifest of embeddings: {error}") from error


def part_file(folder: Path, part: int) -> Path:
    """The file of a part."""
    return folder / f"part-{part:05d}.parquet"


def write_part(folder: Path, job: Job, part: int, rows: pa.Table, unreadable: Sequence[int]) -> None:
    """Write a part in one instant, with a checksum of its content; OSError if it cannot be written.

    Args:
        folder: of the job.
        job: what the part is of.
        part: its number.
        rows: its embeddings.
        unreadable: rows of the data that are left out.
    """
    file = part_file(folder, part)
    for left in folder.glob(f".{file.name}.*"):  # by a process that was killed
        left.unlink(missing_ok=True)
    notes: dict[str, Any] = {"job": job.digest, "part": part, "unreadable": list(unreadable)}
    notes["sha256"] = _checksum(rows, notes)
    rows = rows.replace_schema_metadata({_NOTES: json.dumps(notes).encode()})
    with replacing(file, _mark()) as temporary:
        pq.write_table(rows, temporary)


def read_part(folder: Path, job: Job, part: int) -> pa.Table:
    """The rows of a part, its content checked.

    Raises:
        FileNotFoundError: it is not there.
        DamagedPart: it is of another job, or not as it was written; the message names it.
    """
    file = part_file(folder, part)
    notes = _read_notes(folder, job, part)
    try:
        rows = pq.ParquetFile(file).read()
        if notes.pop("sha256") != _checksum(rows, notes):
            raise ValueError("its checksum is not that of its content")
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedPart(f"{file} is damaged: {' '.join(str(error).split())}") from error
    return rows


def read_unreadable(folder: Path, job: Job, part: int) -> list[int]:
    """The rows of the data that a part leaves out, by its footer alone; errors as of `read_part`."""
    unreadable: list[int] = _read_notes(folder, job, part)["unreadable"]
    return unreadable


def _read_notes(folder: Path, job: Job, part: int) -> dict[str, Any]:
    file = part_file(folder, part)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there")
    try:
        notes: dict[str, Any] = json.loads((pq.read_schema(file).metadata or {})[_NOTES])
        marks, _ = (notes["job"], notes["part"]), len(notes["unreadable"])
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DamagedPart(f"{file} is damaged: {reason}") from error
    if marks != (job.digest, part):
        raise DamagedPart(f"{file} is not of this job")
    return notes


def _checksum(rows: pa.Table, notes: dict[str, Any]) -> str:
    """SHA-256 of a part's rows and notes, of what they say and not of how a release of Arrow writes it."""
    digest = hashlib.sha256(json.dumps(notes, sort_keys=True).encode())
    for name in rows.column_names:
        column = rows.column(name).combine_chunks()
        digest.update(f"{name} {len(column)} ".encode())
        if pa.types.is_fixed_size_list(column.type):
            digest.update(f"{column.type.list_size} ".encode())
            digest.update(column.flatten().to_numpy(zero_copy_only=False).tobytes())
        else:
            digest.update(json.dumps(column.to_pylist()).encode())
    return digest.hexdigest()


def read_parts(folder: Path) -> pa.Table:
    """The rows of all parts in order; ValueError, one line, if one is missing or damaged."""
    job = read_job(folder)
    try:
        parts = [read_part(folder, job, part) for part in range(job.num_parts)]
        return pa.concat_tables(
            parts, promote_options="permissive"
        )  # earlier versions wrote texts as `string`
    except FileNotFoundError as error:
        raise ValueError(
            f"{error}: the job is not finished; the same `prism embed` goes on with it"
        ) from error
    except DamagedPart as error:
        raise ValueError(f"{error}; the same `prism embed` makes it anew") from error


def part_of(job: Job, row: int) -> int:
    """The number of the part that a row of the data is in."""
    return row // job.rows_per_part


def rows_by_batch(job: Job, part: int, batch_size: int) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    """The rows of a part in batches, which never reach into another part."""
    if batch_size < 1:
        raise ValueError(f"the batch size must be at least 1, not {batch_size}")
    rows = job.rows_of(part)
    return [
        np.asarray(rows[start : start + batch_size], np.int64) for start in range(0, len(rows), batch_size)
    ]


def _mark() -> str:
    """What tells this process's unfinished files from those of others."""
    return f"{socket.gethostname()}-{os.getpid()}"
