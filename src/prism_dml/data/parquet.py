"""Parquet in the layout of the Hugging Face Hub's image data sets, one file or a folder of shards."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from prism_dml.data.names import Names
from prism_dml.data.remote import RemoteFile, read_parts
from prism_dml.data.row_groups import ParquetImages, Shard, open_parquet, reading
from prism_dml.data.table import ImageTable, Numbered, is_missing, listed, renumber

READERS = 16
"""Files of a store whose labels are read at once: each waits for several answers."""
_HUB_SHARD = re.compile(r"(?P<split>\w+)-\d{5}-of-\d{5}(-\w+)?")


def parquet_shards(folder: Path) -> list[Path]:
    """The parquet files directly in a folder, or in its sub-folder data/ as on the Hub; in order of name."""
    shards: list[Path] = []
    for place in (folder, folder / "data"):
        shards = shards or sorted(
            file
            for file in (place.iterdir() if place.is_dir() else ())
            if file.suffix.lower() == ".parquet" and not file.name.startswith(".")
        )
    return shards


@dataclass(frozen=True)
class _Content:
    """What is read of a file at once: all but its images' bytes."""

    layout: dict[str, str]
    """The kind of each column of labels."""
    rows: int
    paths: pa.ChunkedArray | None
    """(N,) text; None where the images have no paths."""
    columns: dict[str, Numbered]
    """label, clean_label and split."""
    lengths: list[int]
    """Rows of each row group."""
    ranges: list[tuple[int, int]]
    """Offsets between which each row group's images lie."""


def read_parquet(files: Sequence[Shard]) -> ImageTable:
    """Parquet files with columns `image`, struct of bytes and path, and `label`, in order, as one table.

    `label` and `clean_label` are strings, or integers with or without the Hub's ClassLabel names. A missing
    `clean_label` is allowed where a column `is_noisy` is true: the true class is none of the classes.
    Shards named like train-00000-of-00002 give the splits where there is no column `split`. `paths` are
    those in `image` if all differ, else file.parquet#row.

    Only footers, labels and paths are read, as columns: a row takes 8 bytes for each kind of label, 4 for each letter
    of the longest split's name, and its path's length and 8.

    Raises:
        ValueError: a corrupt file, no rows, missing columns or labels, wrong types, shards that differ.
        StoreError: a store that cannot be reached, or refuses.
    """
    with ThreadPoolExecutor(READERS if isinstance(files[0], RemoteFile) else 1) as pool:
        contents = list(pool.map(_read_shard, files))
    layout = contents[0].layout
    for file, content in zip(files, contents, strict=True):
        if content.layout != layout:
            raise ValueError(
                f"{file}: {_describe(content.layout)}, but {files[0].name} has {_describe(layout)}"
            )
    lengths = [length for content in contents for length in content.lengths]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    if starts[-1] == 0:
        raise ValueError(f"{files[0]}: no rows")
    groups = [
        (number, group) for number, content in enumerate(contents) for group in range(len(content.lengths))
    ]
    ranges = [pair for content in contents for pair in content.ranges]
    images = ParquetImages(files, np.array(groups, np.int64), starts, np.array(ranges, np.int64))
    columns = {name: _joined([content.columns[name] for content in contents]) for name in contents[0].columns}
    kinds_differ = layout["label"] != layout.get("clean_label", layout["label"])
    if kinds_differ and {*columns["label"][1]}.isdisjoint(columns["clean_label"][1]):
        raise ValueError(f"{files[0]}: {_describe(layout)}, and no clean_label is the name of a label")
    return ImageTable.from_numbers(
        images,
        _identifiers(files, contents),
        columns["label"],
        columns.get("clean_label"),
        _splits(files, contents, columns.get("split")),
    )


def _layout(file: Shard, schema: pa.Schema) -> dict[str, str]:
    """The kind of each column that is read; ValueError for a missing or unusable one."""
    for name in ("image", "label"):
        if schema.names.count(name) != 1:
            raise ValueError(f"{file}: no column '{name}'; the columns are: {listed(schema.names)}")
    image = schema.field("image").type
    if not _holds_images(image):
        raise ValueError(f"{file}: the column 'image' must be a struct of bytes and path, it is {image}")
    kinds = {name: _kind(schema.field(name).type) for name in _LABELS if name in schema.names}
    unusable = next((name for name, kind in kinds.items() if kind not in _LABELS[name]), None)
    if unusable:
        raise ValueError(
            f"{file}: the column '{unusable}' must be {' or '.join(_LABELS[unusable])}, "
            f"it is {schema.field(unusable).type}"
        )
    return kinds


def _holds_images(type_: pa.DataType) -> bool:
    """Whether it is a struct of bytes, and of a path or none; either may be missing in every row."""
    if not (pa.types.is_struct(type_) and type_.get_field_index("bytes") >= 0):
        return False
    fields = {type_.field(i).name: type_.field(i).type for i in range(type_.num_fields)}
    data, path = fields["bytes"], fields.get("path", pa.null())
    are = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_null)
    return any(is_data(data) for is_data in are) and (_kind(path) == "text" or pa.types.is_null(path))


_LABELS = {
    "label": ("text", "integer"),
    "clean_label": ("text", "integer"),
    "is_noisy": ("boolean",),
    "split": ("text",),
}


def _kind(type_: pa.DataType) -> str:
    if pa.types.is_dictionary(type_):
        return _kind(type_.value_type)
    if pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_):
        return "text"
    if pa.types.is_integer(type_):
        return "integer"
    return "boolean" if pa.types.is_boolean(type_) else "other"


def _describe(layout: dict[str, str]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in layout.items())


def _read_shard(file: Shard) -> _Content:
    """The columns of a file but for the images' bytes; ValueError for missing labels."""
    with open_parquet(file) as opened:
        metadata, schema = opened.metadata, opened.schema_arrow
        layout = _layout(file, schema)
        wanted = ["image.path", *layout]
        if isinstance(file, Path):
            rows = _read_columns(file, opened, wanted)
    if isinstance(file, RemoteFile):
        with open_parquet(file, metadata, read_parts(file, _column_ranges(metadata, wanted))) as opened:
            rows = _read_columns(file, opened, wanted)
    lengths = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    if rows.num_rows != sum(lengths):
        raise ValueError(f"{file}: {sum(lengths)} rows are announced, {rows.num_rows} are there")
    columns: dict[str, Numbered] = {}
    named = {name: _hub_class_names(file, schema, name) for name in layout if layout[name] == "integer"}
    others = next((names for names in named.values() if names is not None), None)  # both kinds mean the same
    for name in ("label", "clean_label", "split"):
        if name in layout:
            names = (named[name] or others) if name in named else None
            columns[name] = _class_names(rows.column(name), names, are_classes=name != "split")
    for name in ("label", "split"):
        if name in columns and (missing := columns[name][0] < 0).any():
            raise ValueError(f"{file}, row {missing.argmax()}: no {name}")
    if "clean_label" in columns:
        unknown = columns["clean_label"][0] < 0
        if "is_noisy" in layout:
            unknown &= ~pc.fill_null(rows.column("is_noisy"), False).to_numpy()
        if unknown.any():
            raise ValueError(
                f"{file}, row {unknown.argmax()}: no clean_label; where the true class is none of the classes, "
                "a column is_noisy must be true"
            )
    paths = pc.struct_field(rows.column("image"), "path") if "image" in rows.column_names else None
    with reading(file):
        ranges = [_range_of(metadata, group, ["image"]) for group in range(metadata.num_row_groups)]
    return _Content(layout, rows.num_rows, paths, columns, lengths, ranges)


def _read_columns(file: Shard, opened: pq.ParquetFile, columns: list[str]) -> pa.Table:
    with reading(file):
        table = opened.read(columns=columns)
        table.validate(full=True)  # texts of a damaged file need not be UTF-8
        return table


def _class_names(column: pa.ChunkedArray, names: list[str] | None, are_classes: bool) -> Numbered:
    """(N,) number of each label in the distinct names, -1 for a missing one; integers by the Hub's class names."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    joined = column.unify_dictionaries().combine_chunks()
    if isinstance(joined, pa.ChunkedArray):  # of no rows, in older releases
        return np.empty(0, np.int64), []
    numbers = pc.fill_null(joined.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    values = joined.dictionary.to_pylist()
    if names is not None:
        found = [
            names[label].strip()
            if label is not None and 0 <= label < len(names) and not is_missing(names[label])
            else None
            for label in values
        ]
    else:
        found = [
            None if label is None or (are_classes and is_missing(str(label))) else str(label).strip()
            for label in values
        ]
    distinct = list(dict.fromkeys(name for name in found if name is not None))
    place = {name: k for k, name in enumerate(distinct)}
    return renumber(numbers, [-1 if name is None else place[name] for name in found]), distinct


def _joined(columns: Sequence[Numbered]) -> Numbered:
    """The columns of several files as one."""
    place: dict[str, int] = {}
    numbers = [
        renumber(numbers, [place.setdefault(name, len(place)) for name in names])
        for numbers, names in columns
    ]
    return np.concatenate(numbers), list(place)


def _hub_class_names(file: Shard, schema: pa.Schema, column: str) -> list[str] | None:
    """The names of a ClassLabel column in the metadata that the Hub's `datasets` library writes."""
    try:
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {})
        feature = info.get("features", {}).get(column, {})
        names = feature["names"] if feature.get("_type") == "ClassLabel" else None
    except (ValueError, AttributeError, KeyError, RecursionError):
        raise ValueError(f"{file}: the metadata 'huggingface' are damaged") from None
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"{file}: the class names of '{column}' in the metadata 'huggingface' are no names")
    return names


def _identifiers(files: Sequence[Shard], contents: Sequence[_Content]) -> Names:
    chunks = [
        None if content.paths is None else content.paths.cast(pa.large_string()) for content in contents
    ]
    parts = [part for chunk in chunks if chunk is not None for part in chunk.chunks]
    if None not in chunks and not any(part.null_count for part in parts):
        paths = pa.chunked_array(parts, pa.large_string())
        if pc.count_distinct(paths).as_py() == len(paths):
            return Names(paths)
    numbered = [
        pc.binary_join_element_wise(file.name, pa.array(np.arange(content.rows)).cast(pa.string()), "#")
        for file, content in zip(files, contents, strict=True)
    ]
    return Names(pa.chunked_array(numbered))


def _splits(
    files: Sequence[Shard], contents: Sequence[_Content], column: Numbered | None
) -> NDArray[np.str_] | None:
    if column is not None:
        numbers, names = column
        return np.array(names, np.str_)[numbers]
    names = [match["split"] for file in files if (match := _HUB_SHARD.fullmatch(file.stem))]
    if len(names) < len(files):
        return None
    return np.repeat(np.array(names, np.str_), [content.rows for content in contents])


def _column_ranges(metadata: pq.FileMetaData, columns: Sequence[str]) -> list[tuple[int, int]]:
    """Where a file has columns, each in each row group."""
    return [
        _range_of(metadata, group, [name])
        for group in range(metadata.num_row_groups)
        for name in columns
        if any(_is_of(metadata.schema.column(c).path, name) for c in range(metadata.num_columns))
    ]


def _range_of(metadata: pq.FileMetaData, group: int, columns: Sequence[str]) -> tuple[int, int]:
    """Offsets between which a row group has its chunks of columns, which may be structs."""
    starts, stops = [], []
    row_group = metadata.row_group(group)
    for number in range(row_group.num_columns):
        chunk = row_group.column(number)
        if any(_is_of(chunk.path_in_schema, name) for name in columns):
            start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
            starts.append(min(start, chunk.data_page_offset))
            stops.append(starts[-1] + chunk.total_compressed_size)
    return min(starts), max(stops)


def _is_of(path: str, column: str) -> bool:
    return path == column or path.startswith(f"{column}.")
