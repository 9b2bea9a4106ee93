"""One door to every layout of data that is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prism_dml.data.cars import is_cars, read_cars
from prism_dml.data.csv_list import read_csv
from prism_dml.data.cub import is_cub, read_cub
from prism_dml.data.folder import read_folder, read_remote_folder
from prism_dml.data.food import is_food, is_food_list, read_food, read_food_list
from prism_dml.data.parquet import parquet_shards, read_parquet
from prism_dml.data.products import is_products, read_products
from prism_dml.data.remote import RemoteFile, find_files, place
from prism_dml.data.table import ImageTable
from prism_dml.files import at_home

LISTS = (".csv", ".tsv", ".txt")
"""Suffixes of lists."""

PUBLISHED: list[tuple[Callable[[Path], bool], Callable[[Path], ImageTable]]] = [
    (is_cub, read_cub),
    (is_cars, read_cars),
    (is_products, read_products),
    (is_food, read_food),
]
"""Folders of published data sets: how one is recognised, and its reader."""


def read_table(path: str | Path, split: str | None = None) -> ImageTable:
    """Labelled images from a folder of class folders, a list of files, or parquet.

    Args:
        path: a folder of class folders (perhaps under train/ and test/), a `.csv`, `.tsv` or `.txt` list
            (see `read_csv`), a `.parquet` file, folder or pattern (`*`) of shards (see `read_parquet`), or the unpacked
            folder of CUB-200-2011, Cars-196, Stanford Online Products, Food-101 or Food-101N (or a list in its
            meta/). Or text with a URL of any store that fsspec knows (s3://, gs://, https://, memory://, file://)
            for any of them but the unpacked folders.
        split: only this split, with its own classes.

    Returns:
        The table; only labels and names are read, images when they are asked for.

    Raises:
        ValueError: nothing there, not one of these layouts, wrong content, no such split, or a URL whose protocol is
            unknown or needs a package that is not installed.
        StoreError: an OSError: the store behind the URL cannot be reached, or refuses.
    """
    source = place(path) if isinstance(path, str) else at_home(path)
    table = _read(source) if isinstance(source, Path) else _read_url(source.url)
    return table if split is None else table.select(table.members(split)).compact()


def has_class_folders(path: Path) -> bool:
    """Whether a path is read as a folder of class folders, so that another folder in it becomes one."""
    return path.is_dir() and not any(known(path) for known, _ in PUBLISHED) and not parquet_shards(path)


def _read(path: Path) -> ImageTable:
    if path.is_dir():
        for recognises, read in PUBLISHED:
            if recognises(path):
                return read(path)
        shards = parquet_shards(path)
        if not shards:
            return read_folder(path)
        try:
            return read_parquet(shards)
        except ValueError as error:
            raise ValueError(f"{error} (a folder with .parquet files is read as these only)") from error
    if not path.is_file():
        if "*" in path.name and (shards := sorted(path.parent.glob(path.name))):
            return read_parquet(shards)
        raise ValueError(f"{path}: no such file or folder")
    kind = path.suffix.lower()
    if kind in LISTS:
        return read_food_list(path) if is_food_list(path) else read_csv(path)
    if kind == ".parquet":
        return read_parquet([path])
    raise ValueError(f"{path}: the data must be a folder of class folders, .csv, .tsv, .txt or .parquet")


def _read_url(url: str) -> ImageTable:
    try:
        files = find_files(url, ".parquet")
        if not files:
            return read_remote_folder(RemoteFile(url))
        kinds = {file.suffix.lower() for file in files}
        if kinds == {".parquet"}:
            return read_parquet(files)
        if len(files) == 1 and kinds <= {*LISTS}:
            return read_csv(files[0])
    except FileNotFoundError as error:
        raise ValueError(f"{url}: no such file or folder") from error
    raise ValueError(f"{url}: the data must be a folder, .csv, .tsv, .txt or .parquet")
