"""One door to every layout of data that is read."""

from __future__ import annotations

from pathlib import Path

from prism_dml.data.csv_list import read_csv
from prism_dml.data.folder import read_folder
from prism_dml.data.parquet import parquet_shards, read_parquet
from prism_dml.data.table import ImageTable


def read_table(path: str | Path, split: str | None = None) -> ImageTable:
    """Labelled images from a folder of class folders, a list of files, or parquet.

    Args:
        path: a folder of class folders (perhaps under train/ and test/), a `.csv`, `.tsv` or `.txt` list
            (see `read_csv`), or a `.parquet` file or folder of shards (see `read_parquet`).
        split: only this split, with its own classes; all samples if the data names no splits.

    Returns:
        The table; only labels and names are read, images when they are asked for.

    Raises:
        ValueError: nothing there, not one of these layouts, wrong content, or no such split.
    """
    table = _read(Path(path).expanduser())
    return table if split is None else table.split(split)


def _read(path: Path) -> ImageTable:
    if path.is_dir():
        shards = parquet_shards(path)
        return read_parquet(shards) if shards else read_folder(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file or folder")
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv", ".txt"):
        return read_csv(path)
    if kind == ".parquet":
        return read_parquet([path])
    raise ValueError(f"{path}: the data must be a folder of class folders, .csv, .tsv, .txt or .parquet")
