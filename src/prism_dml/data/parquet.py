"""Parquet in the layout of the Hugging Face Hub's image data sets, one file or a folder of shards."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prism_dml.data.table import ImageTable, IntArray, is_missing, listed

HELD_BYTES = 512 * 2**20
"""Row groups up to this size in all stay in memory once read; the others are read again when asked for."""
_HUB_SHARD = re.compile(r"(?P<split>\w+)-\d{5}-of-\d{5}(-\w+)?")


class ParquetImages:
    """Image bytes in the row groups of parquet files, read when asked for; the last ones stay in memory.

    A row group is read as a whole: images asked for in random order from more than 512 MiB are quick only
    if row groups are small (the Hub's have 100 images).
    """

    _held: OrderedDict[int, pa.ChunkedArray]
    _opened: tuple[int, pq.ParquetFile] | None

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        self.groups: list[tuple[int, int]] = []  # the number of a file, and of a row group in it
        lengths: list[int] = []
        for number, file in enumerate(self.files):
            metadata = _open(file).metadata
            self.groups += [(number, group) for group in range(metadata.num_row_groups)]
            lengths += [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self.starts: IntArray = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self._forget()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        """What a worker process needs: where the bytes are, not the bytes."""
        return {"files": self.files, "groups": self.groups, "starts": self.starts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def read(self, i: int) -> bytes:
        """The encoded bytes of image i, or of the file that its row names; OSError or ValueError without."""
        group = int(np.searchsorted(self.starts, i, side="right")) - 1
        image = self._row_group(group)[i - int(self.starts[group])].as_py() or {}
        data: bytes | None = image.get("bytes")
        if data is not None:
            return data
        if image.get("path") is None:
            raise ValueError("the row has no image")
        folder = self.files[self.groups[group][0]].parent
        return folder.joinpath(image["path"]).read_bytes()

    def _row_group(self, group: int) -> pa.ChunkedArray:
        with self._lock:  # threads that want neighbours wait for one reading of their row group
            if group not in self._held:
                number, place = self.groups[group]
                with _reading(self.files[number]):
                    rows = self._open_file(number).read_row_group(place, columns=["image"], use_threads=False)
                expected = int(self.starts[group + 1] - self.starts[group])
                if rows.num_rows != expected:
                    raise ValueError(f"{self.files[number]}: a group of {expected} rows has {rows.num_rows}")
                self._held[group] = rows.column("image")
                self._held_bytes += rows.nbytes
            self._held.move_to_end(group)
            while self._held_bytes > HELD_BYTES and len(self._held) > 1:
                self._held_bytes -= self._held.popitem(last=False)[1].nbytes
            return self._held[group]

    def _open_file(self, number: int) -> pq.ParquetFile:
        if self._opened is None or self._opened[0] != number:
            self._opened = (number, _open(self.files[number]))
        return self._opened[1]

    def _forget(self) -> None:
        self._lock = Lock()
        self._held = OrderedDict()
        self._held_bytes = 0
        self._opened = None


def parquet_shards(folder: Path) -> list[Path]:
    """The parquet files directly in a folder, or in its sub-folder data/ as on the Hub; in order of name."""
    shards: list[Path] = []
    for place in (folder, folder / "data"):
        shards = shards or sorted(file for file in place.glob("*.parquet") if not file.name.startswith("."))
    return shards


def read_parquet(files: Sequence[Path]) -> ImageTable:
    """Parquet files with columns `image`, struct of bytes and path, and `label`, in order, as one table.

    `label` and `clean_label` are strings, or integers with or without the Hub's ClassLabel names. A missing
    `clean_label` is allowed where a column `is_noisy` is true: the true class is none of the classes.
    Shards named like train-00000-of-00002 give the splits where there is no column `split`. `paths` are
    those in `image` if all differ, else file.parquet#row.

    Raises:
        ValueError: a corrupt file, no rows, missing columns or labels, wrong types, shards that differ.
    """
    layouts = [_layout(file) for file in files]
    for file, layout in zip(files, layouts, strict=True):
        if layout != layouts[0]:
            raise ValueError(f"{file}: {_describe(layout)}, but {files[0].name} has {_describe(layouts[0])}")
    images = ParquetImages(files)
    if len(images) == 0:
        raise ValueError(f"{files[0]}: no rows")
    shards = [_read_shard(file, layouts[0]) for file in files]
    return ImageTable.from_names(
        images,
        _identifiers(files, shards),
        [name for shard in shards for name in shard["label"]],
        [name for shard in shards for name in shard["clean_label"]] if "clean_label" in layouts[0] else None,
        _splits(files, shards),
    )


def _layout(file: Path) -> dict[str, str]:
    """The kind of each column that is read; ValueError for a missing or unusable one."""
    schema = _open(file).schema_arrow
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
    is_data = pa.types.is_binary(data) or pa.types.is_large_binary(data) or pa.types.is_null(data)
    return is_data and (_kind(path) == "text" or pa.types.is_null(path))


_LABELS = {
    "label": ("text", "integer"),
    "clean_label": ("text", "integer"),
    "is_noisy": ("boolean",),
    "split": ("text",),
}


def _kind(type_: pa.DataType) -> str:
    if pa.types.is_dictionary(type_):
        return _kind(type_.value_type)
    if pa.types.is_string(type_) or pa.types.is_large_string(type_):
        return "text"
    if pa.types.is_integer(type_):
        return "integer"
    return "boolean" if pa.types.is_boolean(type_) else "other"


def _describe(layout: dict[str, str]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in layout.items())


def _read_shard(file: Path, layout: dict[str, str]) -> dict[str, list[Any]]:
    """The columns of a file but for the images' bytes; class names as text; ValueError for missing ones."""
    with _reading(file):
        opened = _open(file)
        rows = opened.read(columns=["image.path", *layout])
        shard = {name: rows.column(name).to_pylist() for name in layout}
        paths = _image_paths(rows)
    announced = sum(opened.metadata.row_group(g).num_rows for g in range(opened.metadata.num_row_groups))
    if rows.num_rows != announced:
        raise ValueError(f"{file}: {announced} rows are announced, {rows.num_rows} are there")
    for name in ("label", "clean_label"):
        if name in shard:
            names = _hub_class_names(file, rows.schema, name) if layout[name] == "integer" else None
            shard[name] = _class_names(shard[name], names)
    for name in ("label", "split"):
        if name in shard and None in shard[name]:
            raise ValueError(f"{file}, row {shard[name].index(None)}: no {name}")
    if "clean_label" in shard:
        noisy = shard.get("is_noisy", [False] * rows.num_rows)
        for row, (name, flag) in enumerate(zip(shard["clean_label"], noisy, strict=True)):
            if name is None and not flag:
                raise ValueError(
                    f"{file}, row {row}: no clean_label; where the true class is none of the classes, "
                    "a column is_noisy must be true"
                )
    return shard | {"path": paths}


def _class_names(labels: list[Any], names: list[str] | None) -> list[str | None]:
    """Labels as text, None for missing ones; integers by the Hub's class names, if there are any."""
    if names is not None:
        return [names[label] if label is not None and 0 <= label < len(names) else None for label in labels]
    return [None if label is None or is_missing(str(label)) else str(label) for label in labels]


def _hub_class_names(file: Path, schema: pa.Schema, column: str) -> list[str] | None:
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


def _image_paths(rows: pa.Table) -> list[str | None]:
    if "image" not in rows.column_names:  # the struct has no path
        return [None] * rows.num_rows
    paths: list[str | None] = pc.struct_field(rows.column("image"), "path").to_pylist()
    return paths


def _identifiers(files: Sequence[Path], shards: Sequence[dict[str, list[Any]]]) -> list[str]:
    paths = [path for shard in shards for path in shard["path"]]
    if None not in paths and len(set(paths)) == len(paths):
        return paths
    return [
        f"{file.name}#{row}"
        for file, shard in zip(files, shards, strict=True)
        for row in range(len(shard["path"]))
    ]


def _splits(files: Sequence[Path], shards: Sequence[dict[str, list[Any]]]) -> list[str] | None:
    if "split" in shards[0]:
        return [name for shard in shards for name in shard["split"]]
    names = [match["split"] for file in files if (match := _HUB_SHARD.fullmatch(file.stem))]
    if len(names) < len(files):
        return None
    return [name for name, shard in zip(names, shards, strict=True) for _ in shard["path"]]


def _open(file: Path) -> pq.ParquetFile:
    with _reading(file):
        return pq.ParquetFile(file)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{file}: not a readable parquet file: {reason}") from error
