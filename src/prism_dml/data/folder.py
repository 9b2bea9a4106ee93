"""A folder of class folders of images, perhaps under train/ and test/."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from prism_dml.data.remote import RemoteFile, walk_files
from prism_dml.data.table import FileImages, ImageTable

logger = logging.getLogger("prism_dml")

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".gif", ".bmp", ".jp2", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
"""File names that count as images; other files are ignored."""
SPLIT_NAMES = frozenset({"train", "test", "val", "valid", "validation"})
"""Folders of these names, holding class folders, are splits."""


def read_folder(root: Path) -> ImageTable:
    """Images of ROOT/class/... or ROOT/split/class/..., at any depth below the class, as a table.

    Hidden files and files that are not images are ignored. `paths` are relative to `root`.

    Raises:
        ValueError: the folder has no class folders, or these have no images.
    """
    splits = _split_folders(root)
    names: list[str] = []
    labels: list[str] = []
    split_names: list[str] = []
    for split in splits or [root]:
        for class_folder in _folders(split):
            images = [path.relative_to(root).as_posix() for path in _images_below(class_folder)]
            names += images
            labels += [class_folder.name] * len(images)
            split_names += [split.name] * len(images)
        _warn_of_loose_images(split)
    if not names:
        raise ValueError(f"{root}: no images found; expected folders CLASS or train/CLASS in it, with images")
    return ImageTable.from_names(
        FileImages(root, names), names, labels, splits=split_names if splits else None
    )


def read_remote_folder(root: RemoteFile) -> ImageTable:
    """The same of a folder in a store, which is listed once; each image is a request of its own.

    Raises:
        ValueError: the folder has no class folders, or these have no images.
        StoreError: the store cannot be reached, or refuses.
    """
    places = [name.split("/") for name in walk_files(root) if _is_image(name.rpartition("/")[2])]
    places = [parts for parts in places if len(parts) > 1 and "__MACOSX" not in parts]
    if not places:
        raise ValueError(
            f"{root}: neither parquet files nor images found; expected folders CLASS or train/CLASS, with images"
        )
    has_splits = all(parts[0] in SPLIT_NAMES and len(parts) > 2 for parts in places)
    names = ["/".join(parts) for parts in places]
    labels = [parts[has_splits] for parts in places]
    splits = [parts[0] for parts in places] if has_splits else None
    return ImageTable.from_names(FileImages(root, names), names, labels, splits=splits)


def _split_folders(root: Path) -> list[Path]:
    """The split folders of `root`, if all of its folders are splits and have class folders."""
    folders = _folders(root)
    are_splits = all(folder.name in SPLIT_NAMES and _folders(folder) for folder in folders)
    return folders if are_splits else []


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not _is_hidden(path.name))


def _images_below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        yield from (Path(parent, name) for name in sorted(files) if _is_image(name))


def _warn_of_loose_images(folder: Path) -> None:
    loose = sum(_is_image(path.name) for path in folder.iterdir())
    if loose:
        logger.warning("%s: %d images lie outside of class folders and are ignored", folder, loose)


def _is_image(name: str) -> bool:
    return not _is_hidden(name) and Path(name).suffix.lower() in IMAGE_SUFFIXES


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
