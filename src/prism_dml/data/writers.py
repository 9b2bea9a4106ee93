"""Tables to files, as a whole or not at all, and never over the input."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prism_dml.data.carried import CarriedColumns, list_cells
from prism_dml.data.csv_list import truth_list
from prism_dml.data.readers import has_class_folders
from prism_dml.data.remote import RemoteFile, place
from prism_dml.data.row_groups import ParquetImages
from prism_dml.data.table import ImageSource, ImageTable, SelectedImages, image_file, listed, source_rows
from prism_dml.files import at_home, replacing, resolved

logger = logging.getLogger("prism_dml")

ROW_GROUP = 100
"""Images in a row group of parquet, as on the Hub: small enough to be read for one image."""

Columns = dict[str, list[str | None] | list[bool]]


def write_table(
    table: ImageTable,
    out: str | Path,
    source: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a table that `read_table` reads again; the file appears whole or not at all.

    Columns: path (or image), label; clean_label and is_noisy if the truth is known; split if there are any.
    A true class outside of the classes is an empty clean_label. The other columns of a list with a header or of
    parquet are carried along as they are, in their place; one that parquet cannot hold is named in a warning.

    Args:
        table: what to write.
        out: `.csv`: a list with paths relative to its own folder, for images that are files; or `.parquet`:
            the images' bytes too.
        source: the data that the table was read from, which is not to be overwritten.
        progress: called with (images written, images) for `.parquet`.

    Raises:
        ValueError: another kind of file, images that are no files for `.csv`, an unreadable image for
            `.parquet`, `out` is the input or would become part of it, or it cannot be written.
    """
    target = output_file(out)
    refuse_input(target, None if source is None else place(str(source)), table)
    if target.suffix.lower() == ".csv":
        _write_csv(table, target)
    else:
        _write_parquet(table, target, progress)


def output_file(out: str | Path) -> Path:
    """Where a list or parquet is to be written; ValueError if it is another kind of file."""
    target = at_home(out)
    if target.suffix.lower() not in (".csv", ".parquet") or target.is_dir():
        raise ValueError(f"{target}: the output must be a .csv or a .parquet file")
    return target


def write_list(columns: Sequence[tuple[str, Sequence[Any]]], target: Path) -> None:
    """Write columns, each a name and its cells, as CSV, in one piece; ValueError if it cannot be written."""
    with written_whole(target) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        # Python below 3.13 puts "\r" between no quotes of its own accord.
        torn = any(isinstance(cell, str) and "\r" in cell for _, cells in columns for cell in cells)
        rows = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL if torn else csv.QUOTE_MINIMAL)
        rows.writerow([name for name, _ in columns])
        rows.writerows(zip(*(cells for _, cells in columns), strict=True))


def _write_csv(table: ImageTable, target: Path) -> None:
    own: Columns = {"path": _relative_paths(table, target), **_label_columns(table)}
    torn = next((v for values in own.values() for v in values if isinstance(v, str) and "\r" in v), None)
    if torn is not None:  # reading text takes it for the end of a line, within quotes, too
        raise ValueError(f"{target}: no list can hold the name {torn!r}; the output must be .parquet")
    source, numbers = source_rows(table.images)
    header, cells = list_cells(source)
    columns: list[tuple[str, Sequence[Any]]] = []
    for i, name in enumerate(header):
        key = name.strip().lower()
        if key in own:
            columns.append((name, own.pop(key)))
        elif key != "is_noisy":  # without the truth, it may be of the labels as they were
            columns.append((name, [cells[row][i] for row in numbers]))
    write_list([*columns, *own.items()], target)


def _relative_paths(table: ImageTable, target: Path) -> list[str | None]:
    """The images' files as seen from the target's folder."""
    # Links are resolved, since ".." behind one leads elsewhere.
    folder = os.path.realpath(target.parent)
    parents: dict[Path, Path] = {}
    paths: list[str | None] = []
    for i in range(len(table)):
        file = image_file(table.images, i)
        if file is None:
            raise ValueError(
                f"{target}: the images lie in no files of their own, the output must be .parquet"
            )
        if file.parent not in parents:
            parents[file.parent] = Path(os.path.relpath(os.path.realpath(file.parent), folder))
        paths.append((parents[file.parent] / file.name).as_posix())
    return paths


def _write_parquet(table: ImageTable, target: Path, progress: Callable[[int, int], None] | None) -> None:
    own = _label_columns(table)
    source, numbers = source_rows(table.images)
    others = CarriedColumns(source, {"image", *own})
    if others.left_out:
        logger.warning(
            "%s: these columns of the input cannot be carried along: %s", target, listed(others.left_out)
        )
    schema = _schema(own, others)
    with written_whole(target) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for start in range(0, len(table), ROW_GROUP):
            stop = min(start + ROW_GROUP, len(table))
            images = [{"bytes": _read(table, i), "path": table.paths[i]} for i in range(start, stop)]
            part = {name: values[start:stop] for name, values in own.items()}
            carried = others.take(numbers[start:stop])
            writer.write_table(pa.table({"image": images, **part, **carried}, schema=schema))
            if progress is not None:
                progress(stop, len(table))


def _label_columns(table: ImageTable) -> Columns:
    columns: Columns = {"label": [table.classes[k] for k in table.labels]}
    if table.clean_labels is not None and table.is_noisy is not None:
        columns["clean_label"] = [table.classes[k] if k >= 0 else None for k in table.clean_labels]
        columns["is_noisy"] = table.is_noisy.tolist()
    if table.splits is not None:
        columns["split"] = table.splits.tolist()
    return columns


def _schema(own: Columns, others: CarriedColumns) -> pa.Schema:
    """Types, and the metadata by which the Hub's `datasets` library knows a column of images."""
    types = {name: pa.bool_() if name == "is_noisy" else pa.string() for name in own}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = {
        name: pa.field(name, type_) for name, type_ in {"image": image, **types}.items()
    } | others.fields
    order = dict.fromkeys([*(name for name in others.order if name in fields), *fields])
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    features |= {name: {"_type": "Value", "dtype": str(type_)} for name, type_ in types.items()}
    features |= {name: feature for name, feature in others.features.items() if name in others.fields}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema([fields[name] for name in order], metadata=metadata)


def _read(table: ImageTable, i: int) -> bytes:
    try:
        return table.images.read(i)
    except (OSError, ValueError) as error:
        raise ValueError(f"{table.paths[i]!r} cannot be read: {error}") from error


def refuse_input(target: Path, source: Path | RemoteFile | None, table: ImageTable | None = None) -> None:
    """ValueError if writing to `target` would overwrite the input, or add a shard or a class to it.

    Args:
        target: the file to write.
        source: where the input is read from.
        table: what was read of it, if it was; its files may go by other names.
    """
    inputs: list[Path | None] = [] if table is None else _parquet_files(table.images)
    if isinstance(source, Path):
        inputs += [source, truth_list(source)] if source.is_file() else []
        if target.suffix.lower() != ".csv" and _becomes_class(target, source):
            raise ValueError(
                f"{target}: its folder would become a class of the input {source}; write it elsewhere"
            )
        if target.suffix.lower() == ".parquet" and _becomes_part(target, source):
            raise ValueError(f"{target}: it would become a part of the input {source}; write it elsewhere")
    refuse_overwriting(target, inputs)


def refuse_overwriting(target: Path, inputs: Iterable[Path | None]) -> None:
    """ValueError if writing to `target` would overwrite one of these files, whatever name it goes by."""
    if target.exists() and any(
        file is not None and file.exists() and target.samefile(file) for file in inputs
    ):
        raise ValueError(f"{target}: it is the input, which is never overwritten; choose another name")


def _parquet_files(images: ImageSource) -> list[Path | None]:
    if isinstance(images, SelectedImages):
        return _parquet_files(images.source)
    files = images.files if isinstance(images, ParquetImages) else []
    return [file for file in files if isinstance(file, Path)]


def _becomes_part(target: Path, source: Path) -> bool:
    """Whether the input is a folder whose shards the target would be among, or a pattern that it matches."""
    folder = resolved(target).parent
    if source.is_dir():
        return folder in (resolved(source), resolved(source) / "data")
    return not source.exists() and folder == resolved(source.parent) and fnmatch(target.name, source.name)


def _becomes_class(target: Path, source: Path) -> bool:
    """Whether the input is a folder of class folders, and the target lies in a folder within it that is not hidden."""
    folder, root = resolved(target).parent, resolved(source)
    if root not in folder.parents or any(name.startswith(".") for name in folder.relative_to(root).parts):
        return False
    return has_class_folders(source)


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """`replacing`, with a ValueError if the target cannot be written."""
    try:
        with replacing(target) as temporary:
            yield temporary
    except OSError as error:
        raise ValueError(str(error)) from error
