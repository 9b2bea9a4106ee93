"""Columns of the input that a table does not read, such as product numbers: they go through to the output unchanged."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import numpy as np
import pyarrow as pa

from prism_dml.data.csv_list import COLUMNS, cells
from prism_dml.data.row_groups import ParquetImages, open_parquet, reading
from prism_dml.data.table import FileImages, ImageSource, IntArray


def list_cells(source: ImageSource) -> tuple[list[str], list[list[str]]]:
    """The header of the list that images are named in, and the cells of each row; nothing if there is none."""
    if not isinstance(source, FileImages) or source.named_in is None:
        return [], []
    header, *rows = cells(source.named_in)
    if len(rows) != len(source):
        raise ValueError(f"{source.named_in}: changed while it was read")
    return header, rows


class CarriedColumns:
    """The other columns of the list or the parquet files that images come from, as columns of parquet.

    Args:
        source: the images, all of them.
        own: the columns that the output has anyway.
    """

    order: list[str]
    """The input's columns in their order, those in `own` included."""
    fields: dict[str, pa.Field]
    """Of those that are carried."""
    left_out: list[str]
    """Those that parquet cannot hold, of one name or of several types, and what may be of the labels as they were."""
    features: dict[str, Any]
    """What the Hub's `datasets` library has noted of them."""

    def __init__(self, source: ImageSource, own: Collection[str]) -> None:
        self.features = {}
        self._source, self._held = source, -1
        self._header, self._cells = list_cells(source)
        schemas = []
        if isinstance(source, ParquetImages):
            for file in source.files:
                with open_parquet(file) as opened:
                    schemas.append(opened.schema_arrow)
            self.features = _features(schemas[0])
        elif self._header:
            # Parquet spells them in one way, and what they hold is to be of its type.
            known = {name: name for name in COLUMNS} | {"path": "image"}
            self._header = [known.get(name.strip().lower(), name) for name in self._header]
            schemas.append(pa.schema([(name, pa.string()) for name in self._header]))
        self.order = list(dict.fromkeys(name for schema in schemas for name in schema.names))
        self.fields, self.left_out = {}, []
        for name in self.order:
            fields = [schema.field(i) for schema in schemas for i in schema.get_all_field_indices(name)]
            typed = [field for field in fields if not pa.types.is_null(field.type)] or fields
            repeated = any(schema.names.count(name) > 1 for schema in schemas)
            unusable = repeated or len({field.type for field in typed}) > 1
            if name in own:
                # A list may have a column "image" beside its paths.
                self.left_out += [name] if repeated else []
            elif unusable or (name in COLUMNS and (self._header or name == "is_noisy")):
                self.left_out.append(name)
            else:
                self.fields[name] = typed[0].with_nullable(True)

    def take(self, rows: IntArray) -> dict[str, Any]:
        """The carried columns of the images with the numbers `rows` (N,)."""
        if not self.fields:
            return {}
        if not isinstance(self._source, ParquetImages):
            place = {name: self._header.index(name) for name in self.fields}
            return {name: [self._cells[row][i] for row in rows] for name, i in place.items()}
        groups, parts = self._source.blocks(rows), []
        for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(groups)) + 1):
            group = int(groups[run[0]])
            parts.append(self._group(group).take(pa.array(rows[run] - self._source.starts[group])))
        return {
            name: pa.chunked_array([chunk for part in parts for chunk in part[name].chunks], field.type)
            for name, field in self.fields.items()
        }

    def _group(self, group: int) -> pa.Table:
        """The carried columns of a row group; the last one stays in memory."""
        assert isinstance(self._source, ParquetImages)
        if group != self._held:
            number, place = (int(value) for value in self._source.groups[group])
            file = self._source.files[number]
            with open_parquet(file, self._source.footer(number)) as opened, reading(file):
                here = [name for name in self.fields if name in opened.schema_arrow.names]
                table = opened.read_row_group(place, columns=here, use_threads=False).combine_chunks()
            columns = [
                table[name]
                if name in here and table[name].type == field.type
                else pa.nulls(table.num_rows, field.type)
                for name, field in self.fields.items()
            ]
            self._rows = pa.Table.from_arrays(columns, list(self.fields))
            self._held = group
        return self._rows


def _features(schema: pa.Schema) -> dict[str, Any]:
    try:
        content = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        return dict(content["info"]["features"])
    except (ValueError, LookupError, TypeError, RecursionError):  # only what they say of labels must be right
        return {}
