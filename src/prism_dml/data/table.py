"""The table of images and labels that every reader returns, and the sources of image bytes behind it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from prism_dml.data.names import take_names
from prism_dml.data.remote import RemoteFile, is_url

IntArray = NDArray[np.int64]
Numbered = tuple[IntArray, list[str]]
"""(N,) numbers into distinct names, -1 for none of them; and the names."""


class ImageSource(Protocol):
    """Encoded images by number; picklable, and `read` may be called from several threads at once."""

    def __len__(self) -> int: ...

    def read(self, i: int) -> bytes:
        """The encoded bytes of image i; OSError or ValueError where they cannot be had."""


@runtime_checkable
class FetchedTogether(Protocol):
    """A source that is quicker if it knows in advance which images a batch needs."""

    def fetch(self, indices: IntArray) -> None:
        """Make ready what `read` will be asked for."""


@dataclass(frozen=True)
class BytesImages:
    """Images already held as encoded bytes, for small sets and sets that are drawn."""

    data: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.data)

    def read(self, i: int) -> bytes:
        """The encoded bytes of image i."""
        return self.data[i]


@dataclass(frozen=True)
class FileImages:
    """Images in files: `names` are relative to the folder `root`, or absolute, or URLs."""

    root: Path | RemoteFile
    names: Sequence[str]
    named_in: Path | RemoteFile | None = None
    """The list with a header that has a row for each, if one has."""

    def __len__(self) -> int:
        return len(self.names)

    def file(self, i: int) -> Path | RemoteFile:
        """The file of image i."""
        name = self.names[i]
        return RemoteFile(name) if is_url(name) else self.root / name

    def read(self, i: int) -> bytes:
        """The encoded bytes of image i; OSError if its file cannot be read."""
        return self.file(i).read_bytes()


@dataclass(frozen=True)
class SelectedImages:
    """Some images of another source, in the order of `indices` (N,)."""

    source: ImageSource
    indices: IntArray

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, i: int) -> bytes:
        """The encoded bytes of image i of the selection."""
        return self.source.read(int(self.indices[i]))


@dataclass(frozen=True, eq=False)
class ImageTable:
    """N labelled images; image bytes stay in their source, so a table is small and pickles cheaply."""

    images: ImageSource
    """Where the encoded bytes of the N images are read from."""
    paths: Sequence[str]
    """A stable identifier for each sample: its relative path, or file.parquet#row."""
    labels: IntArray
    """(N,) given labels, numbers into `classes`."""
    classes: list[str]
    """Class names in order: by number if all are whole numbers, else alphabetically."""
    clean_labels: IntArray | None = None
    """(N,) true labels into `classes`; -1: the true class is none of them; None: the truth is unknown."""
    splits: NDArray[np.str_] | None = None
    """(N,) name of each sample's split; None: the data names no splits."""

    def __post_init__(self) -> None:
        assert len(self.images) == len(self.paths) == len(self.labels)
        assert self.clean_labels is None or len(self.clean_labels) == len(self.labels)
        assert self.splits is None or len(self.splits) == len(self.labels)

    @classmethod
    def from_names(
        cls,
        images: ImageSource,
        paths: Sequence[str],
        labels: Sequence[str],
        clean_labels: Sequence[str | None] | None = None,
        splits: Sequence[str] | None = None,
    ) -> ImageTable:
        """A table from class names; a clean label of None means a true class outside the set."""
        return cls.from_numbers(
            images,
            paths,
            _number(labels),
            None if clean_labels is None else _number(clean_labels),
            None if splits is None else np.asarray(splits, dtype=np.str_),
        )

    @classmethod
    def from_numbers(
        cls,
        images: ImageSource,
        paths: Sequence[str],
        labels: Numbered,
        clean_labels: Numbered | None = None,
        splits: NDArray[np.str_] | None = None,
    ) -> ImageTable:
        """A table from labels that are numbers into names, in any order; see `from_names`."""
        given, given_names = labels
        truth, truth_names = (None, []) if clean_labels is None else clean_labels
        classes = sort_classes({*given_names, *truth_names})
        place = {name: k for k, name in enumerate(classes)}
        return cls(
            images,
            paths,
            renumber(given, [place[name] for name in given_names]),
            classes,
            None if truth is None else renumber(truth, [place[name] for name in truth_names]),
            splits,
        )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """How many class names there are, those without a sample included."""
        return len(self.classes)

    @property
    def class_counts(self) -> IntArray:
        """(C,) samples of each class by given label."""
        return np.bincount(self.labels, minlength=self.num_classes).astype(np.int64)

    @property
    def is_noisy(self) -> NDArray[np.bool_] | None:
        """(N,) whether the given label is wrong; None where the truth is unknown."""
        return None if self.clean_labels is None else self.labels != self.clean_labels

    def require_classes(self, at_least: int = 2) -> None:
        """ValueError unless `at_least` classes have a sample (nothing can be learned from one class)."""
        present = np.count_nonzero(self.class_counts)
        if present < at_least:
            raise ValueError(f"{at_least} classes or more are needed, the data has {present}")

    def select(self, indices: ArrayLike) -> ImageTable:
        """The samples at `indices` (numbers, or an (N,) mask), in that order; `classes` stays as it is."""
        chosen = np.asarray(indices)
        chosen = np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen.astype(np.int64)
        assert chosen.size == 0 or (chosen.min() >= 0 and chosen.max() < len(self))
        return replace(
            self,
            images=_select_images(self.images, chosen),
            paths=take_names(self.paths, chosen),
            labels=self.labels[chosen],
            clean_labels=None if self.clean_labels is None else self.clean_labels[chosen],
            splits=None if self.splits is None else self.splits[chosen],
        )

    def compact(self) -> ImageTable:
        """The same samples with `classes` cut to those with a sample; other true classes become -1."""
        present, labels = np.unique(self.labels, return_inverse=True)
        place = np.full(self.num_classes, -1, dtype=np.int64)
        place[present] = np.arange(len(present))
        return replace(
            self,
            labels=labels.astype(np.int64),
            classes=[self.classes[k] for k in present],
            clean_labels=None if self.clean_labels is None else renumber(self.clean_labels, place),
        )

    def split(self, name: str) -> ImageTable:
        """The samples of one split, compact; all of them if the data has no splits; ValueError if unknown."""
        return self.compact() if self.splits is None else self.select(self.members(name)).compact()

    def members(self, split: str) -> IntArray:
        """(M,) numbers of the samples of a split; ValueError if it is unknown or the data has no splits."""
        if self.splits is None:
            raise ValueError(f"there is no split '{split}': the data has no splits; leave split out")
        inside = np.flatnonzero(self.splits == split)
        if not len(inside):
            known = ", ".join(np.unique(self.splits).tolist())
            raise ValueError(f"there is no split '{split}' in the data; it has: {known}")
        return inside


def sort_classes(names: Iterable[str]) -> list[str]:
    """Class names in order: by number if all are whole numbers ("9" before "10"), else alphabetically."""
    ordered = sorted(names)
    return sorted(ordered, key=int) if all(map(_is_whole_number, ordered)) else ordered


def listed(names: Iterable[str]) -> str:
    """Names for an error message: on one line, and no more of them than one reads."""
    return shorten(", ".join(names), 300, placeholder=" ...") or "none"


def is_missing(name: str) -> bool:
    """Whether a class name stands for no class: it is empty, or a NaN that was written as text."""
    return name.strip().lower() in ("", "nan")


def fetch_images(images: ImageSource, indices: IntArray) -> None:
    """Tell a source which images (N,) will be read next, if it can read them together; see `ParquetImages.fetch`."""
    if isinstance(images, SelectedImages):
        fetch_images(images.source, images.indices[indices])
    elif isinstance(images, FetchedTogether):
        images.fetch(indices)


def image_file(images: ImageSource, i: int) -> Path | None:
    """The file on disk that image i lies in, or None where the image is no file of its own."""
    if isinstance(images, SelectedImages):
        return image_file(images.source, int(images.indices[i]))
    file = images.file(i) if isinstance(images, FileImages) else None
    return file if isinstance(file, Path) else None


def source_rows(images: ImageSource) -> tuple[ImageSource, IntArray]:
    """The source that images were selected from, and their numbers (N,) in it."""
    if isinstance(images, SelectedImages):
        return images.source, images.indices
    return images, np.arange(len(images), dtype=np.int64)


def _select_images(images: ImageSource, chosen: IntArray) -> SelectedImages:
    if isinstance(images, SelectedImages):  # selections of selections stay one step from the bytes
        return SelectedImages(images.source, images.indices[chosen])
    return SelectedImages(images, chosen)


def _number(names: Sequence[str | None]) -> tuple[IntArray, list[str]]:
    """(N,) number of each name in the list of distinct names, -1 for None."""
    numbers, distinct = pd.factorize(np.asarray(names, dtype=object))
    return numbers.astype(np.int64), [str(name) for name in distinct]


def renumber(numbers: IntArray, place: ArrayLike) -> IntArray:
    """(N,) `place[numbers]`, where -1 stays -1."""
    return np.append(np.asarray(place, dtype=np.int64), -1)[numbers]


def _is_whole_number(name: str) -> bool:
    return name.removeprefix("-").isdecimal() and len(name) < 1000  # Python reads no number of any length
