"""What ``prism audit`` looks at: embeddings and labels, and what training has found of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from prism_dml.cli.embed import embed_table
from prism_dml.data import (
    ImageTable,
    LabelledEmbeddings,
    SelectedImages,
    fingerprint,
    holds_parts,
    image_file,
    read_embeddings,
    read_image,
    read_table,
    table_fingerprint,
)
from prism_dml.data.cache import Unreadable
from prism_dml.models import load
from prism_dml.training.result import EMBEDDINGS, RUN, read_run
from prism_dml.training.sources import training_fingerprint

logger = logging.getLogger("prism_dml")


def are_embeddings(source: Path) -> bool:
    """Whether what is to be looked at are embeddings with labels; else it is a model.

    Raises:
        ValueError: nothing is there, or a file that by its name is neither.
    """
    if not source.exists():
        raise ValueError(f"{source}: no such file or folder")
    kind = source.suffix.lower()
    if kind in (".npz", ".parquet") or holds_parts(source):
        return True
    if source.is_file() and kind != ".safetensors":
        raise ValueError(
            f"{source}: embeddings must be .npz or .parquet, with their labels; a model, a folder or .safetensors"
        )
    return False


@dataclass(frozen=True)
class Samples:
    """What is audited: N samples."""

    vectors: Any
    """(N, D) embeddings."""
    labels: NDArray[np.str_]
    """(N,) given class names."""
    paths: Sequence[str]
    """(N) identifiers."""
    index: NDArray[np.int64]
    """(N,) their numbers in the whole data."""
    fingerprint: str
    """Of the whole data."""
    table: ImageTable | None
    """Their images, if there are any."""
    scores: pd.DataFrame | None
    """(N) rows of what training found of their labels, NaN where nothing, if it left something."""


def of_run(run: Path, data: str, split: str | None, embedding: dict[str, Any]) -> Samples:
    """The readable images of a data set, embedded by the model of a run, as far as the run has not done so.

    Args:
        run: its folder.
        data: the data set.
        split: only this split.
        embedding: options of `embed_table`.

    Raises:
        ValueError: the model or the data cannot be read, or too many of the images.
    """
    if not 0 <= embedding["max_unreadable"] <= 1:
        raise ValueError(f"max_unreadable must be in [0, 1], not {embedding['max_unreadable']}")
    model, whole = load(run), read_table(data)
    asked = np.arange(len(whole)) if split is None else whole.members(split)
    whole.select(asked).require_classes()
    known = _handed_over(run, whole)
    here = np.isin(known.index, asked)
    index, vectors = known.index[here], [torch.from_numpy(known.vectors[here])]
    rest = np.setdiff1d(asked, index)
    if len(index):
        rest = _readable(whole, rest, Unreadable(len(asked), embedding["max_unreadable"]))
    if len(rest) or not len(index):
        most = min(1.0, embedding["max_unreadable"] * len(asked) / max(len(rest), 1))
        embedded = embed_table(model, whole.select(rest), **embedding | {"max_unreadable": most})
        # Unreadable images leave samples out; their numbers in the whole data are those of its images.
        assert isinstance(embedded.table.images, SelectedImages)
        index = np.concatenate([index, embedded.table.images.indices])
        vectors = [*vectors, embedded.vectors] if len(vectors[0]) else [embedded.vectors]
    order = index.argsort()
    index, table = index[order], whole.select(index[order])
    scores = None if known.scores is None else known.scores.set_axis(known.index).reindex(index)
    labels = np.array(table.classes, dtype=object)[table.labels]
    rows = torch.cat(vectors)[torch.from_numpy(order)]
    return Samples(rows, labels, table.paths, index, table_fingerprint(whole), table, scores)


def of_embeddings(file: Path, data: str | None, split: str | None) -> Samples:
    """Embeddings with labels, and the images that they are of, if there are data.

    Raises:
        ValueError: the file or the data cannot be read, or they do not belong together.
    """
    found = read_embeddings(file)
    labels = np.array(found.labels, dtype=object)  # as fixed-width text each would be as long as the longest
    if data is None:
        if split is not None:
            raise ValueError("--split needs DATA: a file of embeddings names no splits")
        index, mark = np.arange(len(labels)), fingerprint(found.paths, found.labels)
        return Samples(found.vectors, labels, found.paths, index, mark, None, found.scores)
    whole = read_table(data)
    index = matched(file, found, whole)
    stays = np.ones(len(index), dtype=bool)
    if split is not None:
        stays = np.isin(index, whole.members(split))
        if not stays.any():
            raise ValueError(f"{file}: no embedding is of the split '{split}'")
    paths = [path for path, stay in zip(found.paths, stays, strict=True) if stay]
    index, scores = index[stays], None if found.scores is None else found.scores[stays]
    mark, table = table_fingerprint(whole), whole.select(index)
    return Samples(found.vectors[stays], labels[stays], paths, index, mark, table, scores)


@dataclass(frozen=True)
class _Known:
    """What training left of M samples."""

    index: NDArray[np.int64]
    """(M,) their numbers in the whole data."""
    vectors: NDArray[np.float32]
    """(M, D) embeddings."""
    scores: pd.DataFrame | None
    """(M) rows."""


def _handed_over(run: Path, whole: ImageTable) -> _Known:
    """What a run left of images as they were; nothing where it has learned from other data, or under other labels."""
    nothing = _Known(np.empty(0, np.int64), np.empty((0, 0), np.float32), None)
    if not ((run / EMBEDDINGS).is_file() and (run / RUN).is_file()):  # it was killed as it ended
        return nothing
    if not (whole.splits is None or "train" in whole.splits):
        return nothing
    settings = read_run(run)["settings"]
    if settings.get("data") != training_fingerprint(whole):
        return nothing
    found = read_embeddings(run / EMBEDDINGS)
    place = pd.Series(np.arange(len(whole)), index=whole.paths)
    if found.paths != whole.paths:  # paths that occur twice do not tell which is which
        place = place[~place.index.duplicated(keep=False)].reindex(found.paths, fill_value=-1)
    index = place.to_numpy()
    # Images for validation may have gone, or have other labels.
    names = np.array(whole.classes, dtype=object)[whole.labels[index]]
    stays = (index >= 0) & (names == np.array(found.labels, dtype=object))
    stays[stays] &= ~_modified(whole, index[stays], (run / EMBEDDINGS).stat().st_mtime)
    scores = None if found.scores is None else found.scores[stays]
    return _Known(index[stays], found.vectors[stays], scores)


def _modified(whole: ImageTable, index: NDArray[np.int64], since: float) -> NDArray[np.bool_]:
    """(M,) whether the file of an image has been modified since then, as far as images are files here; it says so."""
    later = np.zeros(len(index), dtype=bool)
    for place, i in enumerate(index):
        file = image_file(whole.images, int(i))
        with suppress(OSError):  # one that is gone has the embedding that it had
            later[place] = file is not None and file.stat().st_mtime > since
    if later.any():
        first = whole.paths[int(index[later.argmax()])]
        logger.warning("images modified after the run are embedded anew: %d, e.g. %s", later.sum(), first)
    return later


def matched(file: Path, found: LabelledEmbeddings, whole: ImageTable) -> NDArray[np.int64]:
    """(N,) the sample of the data that each embedding is of: in order where paths are the same, else by path."""
    if found.paths == whole.paths:
        index = np.arange(len(found.paths))
    else:
        place = {path: i for i, path in enumerate(whole.paths)}
        if len(place) < len(whole):
            raise ValueError(
                f"{file}: paths occur twice in the data, so it must have the same samples in order"
            )
        missing = next((path for path in found.paths if path not in place), None)
        if missing is not None:
            raise ValueError(f"{file}: {missing!r} is not in the data")
        index = np.array([place[path] for path in found.paths], dtype=np.int64)
        again = pd.Index(found.paths).duplicated()
        if again.any():
            raise ValueError(f"{file}: {found.paths[int(again.argmax())]!r} is in it twice")
    names = np.array(whole.classes)[whole.labels[index]]
    differ = np.flatnonzero(names != np.array(found.labels))
    if len(differ):
        i = int(differ[0])
        raise ValueError(
            f"{file}: {found.paths[i]!r} has the label {found.labels[i]!r}, but {str(names[i])!r} in the data"
        )
    return index


def _readable(table: ImageTable, index: NDArray[np.int64], unreadable: Unreadable) -> NDArray[np.int64]:
    """Samples that the run has not embedded: none, where not one of them can be read, now as then."""
    faults: list[ValueError] = []
    for i in index:
        try:
            read_image(table, int(i))
        except ValueError as error:
            faults.append(error)
        else:
            return index  # what cannot be read among them is found as they are embedded
    for fault in faults:
        unreadable.add(fault)
    unreadable.close()
    return index[:0]
