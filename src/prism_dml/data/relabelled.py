"""Embeddings without their images: read as a table to be corrected, and written with the labels corrected."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prism_dml.data.embeddings import SCORES, read_embeddings
from prism_dml.data.parts import holds_parts, read_job, read_parts
from prism_dml.data.remote import RemoteFile
from prism_dml.data.row_groups import open_parquet
from prism_dml.data.table import BytesImages, ImageTable, listed, source_rows
from prism_dml.data.writers import output_file, refuse_input, write_list, written_whole

logger = logging.getLogger("prism_dml")


def holds_embeddings(source: Path | RemoteFile) -> TypeGuard[Path]:
    """Whether data are embeddings, for `read_embeddings`, and no images: .npz, parts, or parquet without them."""
    if not isinstance(source, Path):
        return False
    if source.suffix.lower() == ".parquet" and source.is_file():
        with open_parquet(source) as opened:
            names = opened.schema_arrow.names
        return "embedding" in names and "image" not in names
    if not holds_parts(source):
        return source.suffix.lower() == ".npz"
    try:  # a folder of images may have a manifest.json of its own
        read_job(source)
    except ValueError:
        return False
    return True


def embeddings_table(file: Path) -> ImageTable:
    """The paths and labels of embeddings, as a table whose images are empty; errors as of `read_embeddings`."""
    found = read_embeddings(file)
    return ImageTable.from_names(BytesImages([b""] * len(found.paths)), found.paths, found.labels)


def write_relabelled(table: ImageTable, out: str | Path, file: Path) -> None:
    """Write embeddings with other labels; the output appears whole or not at all.

    Args:
        table: rows of `embeddings_table(file)`, in their order, with other labels.
        out: `.csv`: path, label and the other columns that are text or numbers; or `.parquet`: the embeddings too.
            What was found of the labels before (`SCORES`; is_noisy without clean_label) is left out.
        file: the embeddings, which are not to be overwritten.

    Raises:
        ValueError: another kind of file, `out` is the input or would become part of it, or cannot be written.
    """
    target = output_file(out)
    refuse_input(target, file)
    rows = _filterable(_rows(file))
    stays = np.zeros(rows.num_rows, dtype=bool)
    stays[source_rows(table.images)[1]] = True
    rows = rows.filter(pa.array(stays)).replace_schema_metadata()  # it may be of the labels as they were
    labels = [table.classes[k] for k in table.labels]
    rows = _set(rows, "label", labels)
    if "path" not in rows.column_names:
        rows = rows.add_column(0, "path", pa.array(table.paths))
    if "clean_label" in rows.column_names:
        truth = rows.column("clean_label").cast(pa.string()).to_pylist()
        wrong = [label != true for label, true in zip(labels, truth, strict=True)]
        rows = _set(rows, "is_noisy", wrong)  # without which no clean_label may be missing
    elif "is_noisy" in rows.column_names:
        rows = rows.drop_columns("is_noisy")
    rows = rows.drop_columns([name for name in SCORES if name in rows.column_names])
    if target.suffix.lower() == ".parquet":
        with written_whole(target) as temporary:
            pq.write_table(rows, temporary)
    else:
        _write_texts(rows.drop_columns("embedding"), target)


def _filterable(rows: pa.Table) -> pa.Table:
    """The same with plain columns in the place of views, of which pyarrow takes no rows."""
    plain = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
    for number, field in enumerate(rows.schema):
        if field.type in plain:
            column = rows.column(number).cast(plain[field.type])
            rows = rows.set_column(number, field.with_type(column.type), column)
    return rows


def _rows(file: Path) -> pa.Table:
    if holds_parts(file):
        return read_parts(file)
    if file.suffix.lower() == ".parquet":
        return pq.read_table(file)
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
        others = [name for name in content if name not in ("embeddings", "labels", "classes", "paths")]
    if others:
        logger.warning("%s: these arrays cannot be carried along: %s", file, listed(others))
    found = read_embeddings(file)
    flat = pa.array(np.ascontiguousarray(found.vectors).reshape(-1))
    vectors = pa.FixedSizeListArray.from_arrays(flat, found.vectors.shape[1])
    return pa.table({"path": found.paths, "label": found.labels, "embedding": vectors})


def _set(rows: pa.Table, name: str, values: Sequence[Any]) -> pa.Table:
    """A column in its place, or behind the others."""
    if name not in rows.column_names:
        return rows.append_column(name, pa.array(values))
    return rows.set_column(rows.column_names.index(name), name, pa.array(values))


def _write_texts(rows: pa.Table, target: Path) -> None:
    columns: list[tuple[str, Sequence[Any]]] = []
    left_out = []
    for name, column in zip(rows.column_names, rows.columns, strict=True):
        try:
            columns.append((name, column.cast(pa.string()).to_pylist()))
        except pa.ArrowException:  # lists, or bytes that are no text
            left_out.append(name)
    if left_out:
        logger.warning("%s: no list can hold these columns of the input: %s", target, listed(left_out))
    write_list(columns, target)
