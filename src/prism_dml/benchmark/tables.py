"""Which samples a job learns from and is measured on, under which labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prism_dml.benchmark.jobs import Job
from prism_dml.benchmark.protocol import DataSet
from prism_dml.data import ImageTable, corrupt_table, read_table
from prism_dml.files import at_home
from prism_dml.training.sources import cut_validation, fingerprint, training_fingerprint


def training_table(job: Job, data_root: Path) -> ImageTable:
    """The split "train" of a job's data, with its wrong labels."""
    table = read_table(resolve(job.path, data_root))
    if job.noise == "none":
        if table.clean_labels is not None:
            table = _with_true_labels(table)
        table = replace(table, clean_labels=table.labels.copy())
    elif job.noise != "given":
        table = corrupt_table(table, job.noise, job.rate, job.seed)  # type: ignore[arg-type]
    if job.labels == "clean":
        table = _with_true_labels(table)
    return table.split("train")


def tuning_table(job: Job, data_root: Path) -> ImageTable:
    """The split "train" of a job's data for a choice of settings.

    A share of the classes is set aside as the split "validation", and the labels of the others are made wrong as the
    job says: as in the test split, labels are true there. Of data whose test split has the training classes, the same
    share of the images is set aside instead. Where the truth is not known, all labels are as given.
    """
    whole = read_table(resolve(job.path, data_root)).split("train")
    truth_known = whole.clean_labels is not None or job.noise != "given"
    truth = whole.labels if whole.clean_labels is None else whole.clean_labels
    names = np.array([*whole.classes, None], dtype=object)  # the last is that of -1
    true_names = names[truth]
    held, aside = _set_aside(job, whole, truth, true_names, data_root)
    learned = whole.select(~held)
    if job.noise not in ("none", "given"):
        learned = corrupt_table(learned.compact(), job.noise, job.rate, job.seed)  # type: ignore[arg-type]
    given = true_names.copy()
    if job.noise != "none":
        given[~held] = np.array(learned.classes, dtype=object)[learned.labels]
    # A label that people gave may name a class that is set aside: nothing can be learned from it here.
    stays = held | ~np.isin(given, aside)
    splits = np.where(held, "validation", "train").tolist()
    right = true_names.tolist() if truth_known else None
    table = ImageTable.from_names(whole.images, whole.paths, given.tolist(), right, splits)
    return table.select(stays)


def _set_aside(
    job: Job, whole: ImageTable, truth: NDArray[np.int64], true_names: NDArray[np.object_], data_root: Path
) -> tuple[NDArray[np.bool_], Sequence[str]]:
    """(N,) which training images a choice of settings is made on, and the classes that are theirs alone."""
    share = job.settings["validation"]
    if set(test_table(job, data_root).classes) <= set(whole.classes):
        known = np.flatnonzero(truth >= 0)
        held = np.zeros(len(whole), bool)
        held[np.random.default_rng((job.seed, 1)).permutation(known)[: round(share * len(known))]] = True
        return held, []
    true_table = replace(whole, labels=truth, clean_labels=truth).select(truth >= 0)
    _, validation = cut_validation(true_table, share, job.seed)
    aside = [] if validation is None else validation.classes
    return np.isin(true_names, aside), aside


def data_fingerprint(data: DataSet, data_root: Path) -> str:
    """What tells a data set from another one at the same place: classes, paths, labels; not the pixels."""
    train = training_fingerprint(read_table(resolve(data.path, data_root)))
    return f"{train}-{fingerprint(test_table(data, data_root))}"


def test_table(of: Job | DataSet, data_root: Path) -> ImageTable:
    """The split "test" of a job's data, with true labels where they are known."""
    table = read_table(resolve(of.test or of.path, data_root))
    if table.splits is None and of.test is None:
        raise ValueError(f"{of.path} has no split 'test'; the data set needs a field test")
    table = table.split("test")
    return table if table.clean_labels is None else _with_true_labels(table)


def resolve(path: str, data_root: Path) -> Path:
    """The place of a data set, or of weights: $VARIABLES filled in, relative paths from `data_root`.

    Raises:
        ValueError: a variable is not set.
    """
    filled = os.path.expandvars(path)
    if "$" in filled:
        raise ValueError(f"the environment variable in {path} is not set")
    return data_root / at_home(filled)


def _with_true_labels(table: ImageTable) -> ImageTable:
    """The samples whose true class is one of the classes, labelled with it."""
    if table.clean_labels is None:
        raise ValueError("the true labels are needed, which the data does not have")
    table = table.select(table.clean_labels >= 0)
    assert table.clean_labels is not None
    return replace(table, labels=table.clean_labels.copy())
