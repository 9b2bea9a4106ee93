"""A folder of class folders of images, perhaps under train/ and test/."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from prism_dml.data.remote import RemoteFile, walk_files
from prism_dml.data.table import FileImages, ImageTable, is_missing, listed

logger = logging.getLogger("prism_dml")

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".gif", ".bmp", ".jp2", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
"""File names that count as images; other files are ignored."""
SPLIT_NAMES = frozenset({"train", "test", "val", "valid", "validation"})
"""Folders of these names, holding class folders, are splits."""
_FOLDERS_OF_SYSTEMS = ("__MACOSX", "lost+found")  # the second only root can list
_LEFT_BY_SYSTEMS = ("Thumbs.db", "desktop.ini")  # of these nobody wants to hear


def read_folder(root: Path) -> ImageTable:
    """Images of ROOT/class/... or ROOT/split/class/..., at any depth below the class, as a table.

    Hidden files are ignored, and those that are no images by their names, which are told of. `paths` are relative to
    `root`.

    Raises:
        ValueError: the folder has no class folders, or these have no images; or a name cannot be written to a list.
        OSError: a folder cannot be listed.
    """
    splits = _split_folders(root)
    names: list[str] = []
    labels: list[str] = []
    split_names: list[str] = []
    empty: list[str] = []
    others: list[str] = []
    for split in splits or [root]:
        for class_folder in _folders(split):
            files = [path.relative_to(root).as_posix() for path in _files_below(class_folder)]
            images = [name for name in files if _is_image(name)]
            others += [name for name in files if not _is_image(name)]
            names += images
            labels += [class_folder.name.strip()] * len(images)
            split_names += [split.name] * len(images)
            if not images:
                empty.append(class_folder.relative_to(root).as_posix())
    _warn_of_loose_images(
        root, [path.relative_to(root).as_posix() for folder in (root, *splits) for path in _images_in(folder)]
    )
    _warn_of_other_files(root, others)
    if not names:
        raise ValueError(f"{root}: no images found; expected folders CLASS or train/CLASS in it, with images")
    _refuse_names(root, names, labels)
    _warn_of_deep_images(root, names, labels, bool(splits))
    _warn_of_empty_folders(root, empty)
    return ImageTable.from_names(
        FileImages(root, names), names, labels, splits=split_names if splits else None
    )


def read_remote_folder(root: RemoteFile) -> ImageTable:
    """The same of a folder in a store, which is listed once; each image is a request of its own.

    Raises:
        ValueError: the folder has no class folders, or these have no images.
        StoreError: the store cannot be reached, or refuses.
    """
    files = [name.split("/") for name in walk_files(root)]
    files = [parts for parts in files if "__MACOSX" not in parts]
    places = [parts for parts in files if _is_image(parts[-1])]
    folders, with_folders = ({parts[0] for parts in places if len(parts) > depth} for depth in (1, 2))
    has_splits = folders <= SPLIT_NAMES and folders == with_folders
    depth = 1 + has_splits  # folders that an image lies in, at least
    _warn_of_loose_images(root, ["/".join(parts) for parts in places if len(parts) <= depth])
    others = [parts for parts in files if len(parts) > depth and not _is_image(parts[-1])]
    _warn_of_other_files(root, ["/".join(parts) for parts in others])
    places = [parts for parts in places if len(parts) > depth]
    if not places:
        raise ValueError(
            f"{root}: neither parquet files nor images found; expected folders CLASS or train/CLASS, with images"
        )
    names = ["/".join(parts) for parts in places]
    labels = [parts[has_splits].strip() for parts in places]
    _refuse_names(root, names, labels)
    splits = [parts[0] for parts in places] if has_splits else None
    _warn_of_deep_images(root, names, labels, has_splits)
    class_folders, full = (
        {"/".join(parts[:depth]) for parts in some if len(parts) > depth} for some in (files, places)
    )
    _warn_of_empty_folders(root, sorted(class_folders - full))
    return ImageTable.from_names(FileImages(root, names), names, labels, splits=splits)


def _split_folders(root: Path) -> list[Path]:
    """The split folders of `root`, if all of its folders are splits and have class folders."""
    folders = _folders(root)
    are_splits = all(folder.name in SPLIT_NAMES and _folders(folder) for folder in folders)
    return folders if are_splits else []


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not _is_hidden(path.name))


def images_below(folder: Path) -> Iterator[Path]:
    """The images of a folder at any depth, in order; what is hidden is passed over. OSError if it cannot be listed."""
    return filter(lambda file: _is_image(file.name), _files_below(folder))


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        folders[:] = sorted(
            name for name in folders if not _is_hidden(name) and not _leads_back(Path(parent, name))
        )
        yield from (Path(parent, name) for name in sorted(files) if not _is_hidden(name))


def _refuse(error: OSError) -> NoReturn:
    """Without it `os.walk` passes over a folder in silence."""
    raise OSError(error.errno, f"folder cannot be listed ({error.strerror})", error.filename)


def _leads_back(path: Path) -> bool:
    """Whether a path is a link to a folder that it lies in, and so would never end."""
    if not path.is_symlink():
        return False
    return os.path.realpath(path) in {os.path.realpath(above) for above in path.absolute().parents}


def _images_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _is_image(path.name) and path.is_file())


def _warn_of_loose_images(root: Path | RemoteFile, loose: list[str]) -> None:
    if loose:
        what = "1 image lies" if len(loose) == 1 else f"{len(loose)} images lie"
        does = "is ignored" if len(loose) == 1 else "are ignored, one of them"
        logger.warning("%s: %s outside of class folders and %s: '%s'", root, what, does, loose[0])


def _warn_of_deep_images(
    root: Path | RemoteFile, names: list[str], labels: list[str], has_splits: bool
) -> None:
    deep = [i for i, name in enumerate(names) if name.count("/") > 1 + has_splits]
    if deep:
        what = "1 image lies" if len(deep) == 1 else f"{len(deep)} images lie"
        logger.warning(
            "%s: %s deeper than CLASS/IMAGE, which makes no further classes: '%s' is of the class '%s'",
            *(root, what, names[deep[0]], labels[deep[0]]),
        )


def _warn_of_other_files(root: Path | RemoteFile, others: list[str]) -> None:
    others = [name for name in others if not name.endswith(_LEFT_BY_SYSTEMS)]
    if others:
        what = "1 file in class folders is no image by its name and is ignored"
        if len(others) > 1:
            what = f"{len(others)} files in class folders are no images by their names and are ignored, one of them"
        logger.warning("%s: %s: '%s'", root, what, others[0])


def _warn_of_empty_folders(root: Path | RemoteFile, empty: list[str]) -> None:
    if empty:
        what = "1 class folder has" if len(empty) == 1 else f"{len(empty)} class folders have"
        logger.warning("%s: %s no images: %s", root, what, listed(empty))


def _refuse_names(root: Path | RemoteFile, names: list[str], labels: list[str]) -> None:
    """ValueError for what no table could hold: names that are no text, classes that would be read as missing."""
    for name in names:
        if not name.isascii() and name != name.encode(errors="ignore").decode():
            raise ValueError(f"{root}: the name {name!r} is not text in UTF-8; rename it")
    unnamed = next((label for label in set(labels) if is_missing(label)), None)
    if unnamed is not None:
        raise ValueError(
            f"{root}: the class folder {unnamed!r} has a name that stands for no class; rename it"
        )


def _is_image(name: str) -> bool:
    file = Path(name)
    return not _is_hidden(file.name) and file.suffix.lower() in IMAGE_SUFFIXES


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _FOLDERS_OF_SYSTEMS
