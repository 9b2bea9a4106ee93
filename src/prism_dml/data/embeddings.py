"""Embeddings with labels in a file: what `prism embed` writes, or anybody."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch import Tensor

from prism_dml.data.parts import holds_parts, read_job, read_parts
from prism_dml.data.table import ImageTable, is_missing
from prism_dml.files import replacing

SCORES = ("label_score", "suggested_label", "suggested_score")
"""What training may have found of a label: the probability that it is right, the most probable one, its probability."""

_Content: TypeAlias = "tuple[NDArray[Any], list[str], list[str], pd.DataFrame | None, str | None]"
_MODEL = b"prism_model"  # in the metadata of parquet


@dataclass(frozen=True, eq=False)
class LabelledEmbeddings:
    """N embeddings and what their samples are called."""

    vectors: NDArray[np.float32]
    """(N, D)."""
    labels: list[str]
    """(N) class names."""
    paths: list[str]
    """(N) identifiers; "#0", "#1" ... where the file names none."""
    scores: pd.DataFrame | None = None
    """(N) rows of `SCORES`, NaN where nobody judged; None: the file has none."""
    model: str | None = None
    """Checksum of the model that made them; None: the file does not tell."""


@dataclass(frozen=True)
class Embedded:
    """A table's images and their embeddings, unreadable images left out."""

    vectors: Tensor
    """(N, D) float32 unit embeddings, on the CPU."""
    table: ImageTable
    """The N samples that they belong to."""


def write_embeddings(embedded: Embedded, out: Path, model: str | None = None) -> None:
    """Write embeddings as `prism embed` describes it, in one piece: never half a file.

    Args:
        embedded: N embeddings and their samples.
        out: .parquet or .npz file; its folder is made.
        model: checksum of the model that made them, which `prism search` compares.
    """
    if out.suffix.lower() == ".npz":
        table = embedded.table
        arrays: dict[str, Any] = {"embeddings": embedded.vectors.numpy(), "paths": np.array(table.paths)}
        arrays |= {"labels": table.labels, "classes": np.array(table.classes)}
        if table.clean_labels is not None:
            arrays["clean_labels"] = table.clean_labels
        if model is not None:
            arrays["model"] = np.array(model)
        with replacing(out) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
    else:
        rows = embedding_rows(embedded)
        if model is not None:
            rows = rows.replace_schema_metadata({_MODEL: model.encode()})
        with replacing(out) as temporary:
            pq.write_table(rows, temporary)


def embedding_rows(embedded: Embedded, scores: pd.DataFrame | None = None) -> pa.Table:
    """The rows of a parquet file of embeddings, as `prism embed` describes it.

    Args:
        embedded: N embeddings and their samples.
        scores: N rows of `SCORES`, to stand beside them.
    """
    vectors, table = embedded.vectors.numpy(), embedded.table
    # All texts of a column lie in one piece, which may be longer than the 2 GB that offsets of 32 bits reach.
    text = pa.large_string()
    classes = pa.array(table.classes, text)
    columns = {"path": pa.array(table.paths, text), "label": classes.take(pa.array(table.labels))}
    if table.clean_labels is not None:
        known = pa.array(table.clean_labels, mask=table.clean_labels < 0)
        columns["clean_label"] = classes.take(known)
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    if scores is not None:
        columns |= {name: pa.array(scores[name].to_numpy()) for name in SCORES}
    return pa.table(columns)


def read_embeddings(file: Path) -> LabelledEmbeddings:
    """Embeddings from `.npz` or `.parquet`, or the folder of parts that `prism embed` has filled.

    NPZ: embeddings (N, D); labels (N,), names or numbers, of `classes` if that array is there too; paths (N,) if
    wanted. Parquet: columns embedding (lists of D numbers), label, path if wanted, and `SCORES`, if all are there.

    Raises:
        ValueError: another kind of file, not readable, something missing, parts that are not all there, or shapes
            that do not fit.
    """
    kind = file.suffix.lower()
    if holds_parts(file):
        vectors, labels, paths, scores, _ = _from_rows(file, read_parts(file))
        model: str | None = read_job(file).model
    elif kind not in (".npz", ".parquet"):
        raise ValueError(f"{file}: embeddings must be .npz or .parquet, or a folder of parts")
    else:
        vectors, labels, paths, scores, model = _read_npz(file) if kind == ".npz" else _read_parquet(file)
    if vectors.ndim != 2 or vectors.dtype.kind not in "iuf" or 0 in vectors.shape:
        raise ValueError(
            f"{file}: embeddings must be numbers of shape (N, D), not {vectors.dtype} {vectors.shape}"
        )
    if not len(vectors) == len(labels) == len(paths):
        raise ValueError(f"{file}: {len(vectors)} embeddings, {len(labels)} labels and {len(paths)} paths")
    missing = next((i for i, label in enumerate(labels) if is_missing(label)), None)
    if missing is not None:
        raise ValueError(f"{file}, row {missing}: no label")
    if not np.isfinite(vectors).all():
        raise ValueError(f"{file}: there are values that are not finite")
    return LabelledEmbeddings(vectors.astype(np.float32, copy=False), labels, paths, scores, model)


def _read_npz(file: Path) -> _Content:
    try:
        # Opened here: numpy leaves open what it cannot read.
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
            arrays = {
                name: content[name]
                for name in ("embeddings", "labels", "classes", "paths", "model")
                if name in content
            }
    except Exception as error:  # numpy, zipfile and zlib have no kind of error in common
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{file}: not a readable .npz file: {reason}") from error
    missing = next((name for name in ("embeddings", "labels") if name not in arrays), None)
    if missing is not None:
        raise ValueError(f"{file}: no array '{missing}'")
    labels, classes = arrays["labels"], arrays.get("classes")
    for name in ("labels", "classes", "paths"):
        if name in arrays and arrays[name].ndim != 1:
            raise ValueError(f"{file}: {name} must be of shape (N,), not {arrays[name].shape}")
    if classes is not None and labels.dtype.kind not in "USiu":
        raise ValueError(
            f"{file}: labels are numbers into classes: they must be integers, not {labels.dtype}"
        )
    if classes is not None and labels.dtype.kind in "iu":
        if labels.size and not (labels.min() >= 0 and labels.max() < len(classes)):
            raise ValueError(
                f"{file}: labels from {labels.min()} to {labels.max()}, but {len(classes)} classes"
            )
        labels = classes[labels]
    names = _texts(file, "labels", labels)
    paths = _texts(file, "paths", arrays["paths"]) if "paths" in arrays else _numbered(len(labels))
    model = str(arrays["model"]) if "model" in arrays else None
    return arrays["embeddings"], names, paths, None, model


def _texts(file: Path, name: str, values: NDArray[Any]) -> list[str]:
    """Names as text: what is in bytes is UTF-8."""
    try:
        return [value.decode() if isinstance(value, bytes) else str(value) for value in values]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: {name} must be UTF-8: {error}") from error


def _read_parquet(file: Path) -> _Content:
    try:
        return _from_rows(file, pq.read_table(file))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{file}: not a readable parquet file: {str(error).partition(chr(10))[0]}"
        ) from error


def _from_rows(file: Path, rows: pa.Table) -> _Content:
    missing = next((name for name in ("embedding", "label") if name not in rows.column_names), None)
    if missing is not None:
        raise ValueError(f"{file}: no column '{missing}'; the columns are: {', '.join(rows.column_names)}")
    if not _holds_lists(rows.column("embedding").type):
        raise ValueError(f"{file}: embedding must hold lists of numbers")
    vectors = _stacked(file, rows.column("embedding"))
    labels = ["" if label is None else str(label) for label in _names(file, rows, "label")]
    paths = _numbered(len(labels))
    if "path" in rows.column_names:
        found = zip(paths, _names(file, rows, "path"), strict=True)
        paths = [number if path is None else str(path) for number, path in found]
    model = (rows.schema.metadata or {}).get(_MODEL)
    return vectors, labels, paths, _scores(file, rows), None if model is None else model.decode()


def _names(file: Path, rows: pa.Table, name: str) -> list[Any]:
    """A column of names; what is in bytes is UTF-8."""
    column = rows.column(name)
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        try:
            column = column.cast(pa.large_string())
        except pa.ArrowException as error:
            raise ValueError(f"{file}: {name} must be UTF-8: {error}") from error
    found: list[Any] = column.to_pylist()
    return found


def _holds_lists(type_: pa.DataType) -> bool:
    are = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_list(type_) for is_list in are)


def _stacked(file: Path, lists: pa.ChunkedArray) -> NDArray[Any]:
    """(N, D) of lists of D numbers, chunk by chunk: one chunk may not reach over all of them."""
    number = lists.type.value_type
    if not (pa.types.is_floating(number) or pa.types.is_integer(number)):
        raise ValueError(f"{file}: embeddings must be numbers, not {number}")
    lengths = {length for chunk in lists.chunks for length in pc.unique(chunk.value_lengths()).to_pylist()}
    if lists.null_count or len(lengths) != 1:
        raise ValueError(f"{file}: every row must hold as many numbers as the others")
    vectors = np.empty((len(lists), *lengths), np.float32)
    start = 0
    with np.errstate(over="ignore"):  # what is too large for float32 is refused as not finite
        for chunk in lists.chunks:
            numbers = chunk.flatten().to_numpy(zero_copy_only=False)
            vectors[start : start + len(chunk)] = numbers.reshape(len(chunk), *lengths)
            start += len(chunk)
    return vectors


def _scores(file: Path, rows: pa.Table) -> pd.DataFrame | None:
    if not set(SCORES) <= set(rows.column_names):
        return None
    kinds = (pa.float64(), pa.large_string(), pa.float64())
    try:
        columns = {name: rows.column(name).cast(kind) for name, kind in zip(SCORES, kinds, strict=True)}
    except pa.ArrowException as error:
        raise ValueError(f"{file}: {SCORES[0]} and {SCORES[2]} must be numbers, {SCORES[1]} names") from error
    return pa.table(columns).to_pandas()


def _numbered(count: int) -> list[str]:
    return [f"#{i}" for i in range(count)]
