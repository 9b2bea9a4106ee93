"""Corrections of labels: what a person decided on the review page, checked against the data and applied."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from prism_dml.data.table import ImageTable, is_missing, listed
from prism_dml.files import at_home, replacing

Action = Literal["relabel", "keep", "drop"]

VERSION = 1
"""Of the file's layout."""
_BLOCK = 65_536
"""Samples whose names are text at a time while all are looked at."""


@dataclass(frozen=True)
class Correction:
    """What was decided about one sample."""

    index: int
    """Number of the sample in the data, from 0."""
    path: str
    """Its identifier, as in `ImageTable.paths`."""
    given_label: str
    """Its class in the data."""
    action: Action
    """relabel: it is of the class `label`; keep: the given label is right; drop: it belongs to no class."""
    label: str | None
    """Its class from now on; None for drop."""


@dataclass(frozen=True)
class Corrections:
    """Decisions about samples of one data set."""

    fingerprint: str
    """`fingerprint` of the data that they were made for."""
    items: list[Correction]
    """At most one for each sample."""
    undecided: int | None = None
    """Suspects of the review page that nobody has decided on; None: the file does not tell."""


@dataclass(frozen=True)
class Corrected:
    """A corrected data set, and how much was changed."""

    table: ImageTable
    relabelled: int
    """Samples that got another label."""
    kept: int
    """Samples whose label was found right."""
    dropped: int
    """Samples that are left out."""
    new_classes: list[str]
    """Labels that no sample had before."""


def fingerprint(paths: Sequence[str], labels: Sequence[str]) -> str:
    """SHA-256 of (N,) identifiers and (N,) class names in order: it changes if any of them does."""
    digest = hashlib.sha256()
    for mark, names in (
        ("[[", paths),
        ("],[", labels),
    ):  # JSON, but never the text of millions of rows at once
        for start in range(0, len(names), _BLOCK):
            text = json.dumps(list(names[start : start + _BLOCK]), separators=(",", ":"))[1:-1]
            digest.update(f"{mark if start == 0 else ','}{text}".encode("ascii"))
        if not names:
            digest.update(mark.encode("ascii"))
    digest.update(b"]]")
    return "sha256:" + digest.hexdigest()


def table_fingerprint(table: ImageTable) -> str:
    """The fingerprint of a table's paths and given labels."""
    return fingerprint(table.paths, _names(table))


def read_corrections(file: str | Path) -> Corrections:
    """The corrections in a file that the review page exported, or `write_corrections` wrote.

    Raises:
        ValueError: it cannot be read, is not JSON, or is not laid out as this version writes it.
    """
    source = at_home(file)
    try:
        content = json.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{source}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source}: not JSON: {error}") from error
    if not isinstance(content, dict) or "corrections" not in content:
        raise ValueError(f"{source}: not a file of corrections; the review page exports one")
    if content.get("version") != VERSION:
        raise ValueError(
            f"{source}: version {content.get('version')!r}, but this version of Prism reads {VERSION}"
        )
    if not isinstance(content.get("fingerprint"), str) or not isinstance(content["corrections"], list):
        raise ValueError(f"{source}: fingerprint must be text and corrections a list")
    items = [_parse(source, number, item) for number, item in enumerate(content["corrections"])]
    undecided = content.get("undecided")
    return Corrections(content["fingerprint"], items, undecided if isinstance(undecided, int) else None)


def write_corrections(corrections: Corrections, file: Path) -> None:
    """Write corrections as JSON, in one piece; OSError if the file cannot be written."""
    content = {
        "version": VERSION,
        "fingerprint": corrections.fingerprint,
        "corrections": [asdict(item) for item in corrections.items],
    }
    if corrections.undecided is not None:
        content["undecided"] = corrections.undecided
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def apply_corrections(table: ImageTable, corrections: Corrections) -> Corrected:
    """The table with its corrections carried out; the table itself stays as it is.

    Raises:
        ValueError: a correction does not match its sample, two are for one sample, the data is not that of the
            corrections, or nothing would be left.
    """
    names = _names(table)
    _check(table, names, corrections)
    present = set(names)
    stays = np.ones(len(table), dtype=bool)
    for item in corrections.items:
        if item.label is None:
            stays[item.index] = False
        else:
            names[item.index] = item.label
    if not stays.any():
        raise ValueError("every sample of the data would be dropped")
    changed = [item for item in corrections.items if item.label is not None]
    relabelled = sum(item.label != item.given_label for item in changed)
    left = _rename(table, names).select(stays)
    return Corrected(
        left,
        relabelled,
        kept=len(changed) - relabelled,
        dropped=int((~stays).sum()),
        new_classes=sorted({str(item.label) for item in changed} - present),
    )


def _names(table: ImageTable) -> list[str]:
    return [table.classes[k] for k in table.labels]


def _rename(table: ImageTable, names: list[str]) -> ImageTable:
    truth = table.clean_labels
    clean = None if truth is None else [table.classes[k] if k >= 0 else None for k in truth]
    splits = None if table.splits is None else table.splits.tolist()
    return ImageTable.from_names(table.images, table.paths, names, clean, splits)


def _check(table: ImageTable, names: list[str], corrections: Corrections) -> None:
    """ValueError unless every correction is about the sample that it says it is about."""
    items = sorted(corrections.items, key=lambda item: item.index)
    again = _first_duplicate([item.index for item in items])
    if again is not None:
        raise ValueError(f"there are two corrections for sample {again}")
    if items and items[0].index < 0:
        raise ValueError(f"a correction is for sample {items[0].index}, but they are numbered from 0")
    if not all(_is_in_place(item, table.paths) for item in items):
        raise ValueError(f"{_what_changed(table.paths, items)}, or audit anew")
    for item in items:
        if item.given_label != names[item.index]:
            raise ValueError(
                f"sample {item.index} has the label {names[item.index]!r} in the data, {item.given_label!r} in the "
                "corrections"
            )
        if item.label is not None and item.label != item.label.strip() and item.label not in table.classes:
            raise ValueError(
                f"sample {item.index}: the new class {item.label!r} must not begin or end with a space"
            )
    if corrections.fingerprint != fingerprint(table.paths, names):
        raise ValueError(
            "the data have changed since they were audited, in images that have no correction: one was added, taken "
            "out, renamed or given another label (the fingerprints differ); undo it, or audit anew"
        )


def _is_in_place(item: Correction, paths: Sequence[str]) -> bool:
    return item.index < len(paths) and item.path == paths[item.index]


def _what_changed(paths: Sequence[str], items: list[Correction]) -> str:
    """What was done to the data since they were audited, and how to undo it.

    Args:
        paths: of the data now.
        items: by number, some not in place.
    """
    place = {path: i for i, path in enumerate(paths)}
    missing = [item.path for item in items if item.path not in place]
    if missing:
        return _missing(len(missing), f": {listed(missing)}")
    now = [item.index if _is_in_place(item, paths) else place[item.path] for item in items]
    if now != sorted(set(now)):
        return "the images are in another order than when they were audited; restore it"
    first = next(i for i, item in enumerate(items) if now[i] != item.index)
    start, end = now[first - 1] + 1 if first else 0, now[first]
    added = end - items[first].index
    if added < 0:  # without corrections, so that nobody knows their names
        after = f"after {paths[start - 1]!r} and " if first else ""
        return _missing(-added, f", {after}before {paths[end]!r}")
    between = [paths[i] for i in range(start, end)]
    which = f": {listed(between)}"
    if len(between) > added:
        which = f", {added} of the {len(between)} from {between[0]!r} to {between[-1]!r}"
    what, it = ("1 image was", "it") if added == 1 else (f"{added} images were", "them")
    return f"{what} not there when the data were audited{which}; take {it} out"


def _missing(count: int, which: str) -> str:
    what, it = ("1 image that was audited is", "it")
    if count > 1:
        what, it = (f"{count} images that were audited are", "them")
    return f"{what} missing in the data{which}; put {it} back"


def _parse(source: Path, number: int, item: Any) -> Correction:
    place = f"{source}: correction {number}"
    if not isinstance(item, dict):
        raise ValueError(f"{place} is not an object")
    index, label = item.get("index"), item.get("label")
    action: Any = item.get("action")
    if not isinstance(index, int) or isinstance(index, bool) or abs(index) >= 2**63:
        raise ValueError(f"{place}: index must be a whole number below 2^63, not {index!r}")
    for name in ("path", "given_label"):
        if not isinstance(item.get(name), str):
            raise ValueError(f"{place}: {name} must be text, not {item.get(name)!r}")
    if action not in get_args(Action):
        raise ValueError(f"{place}: action must be one of {', '.join(get_args(Action))}, not {action!r}")
    given = item["given_label"]
    if action == "relabel":
        if not isinstance(label, str) or is_missing(label):
            raise ValueError(f"{place}: label must be the name of a class, not {label!r}")
    elif label != (given if action == "keep" else None):
        raise ValueError(f"{place}: {action} does not go with the label {label!r}")
    return Correction(index, item["path"], given, action, label)


def _first_duplicate(numbers: ArrayLike) -> int | None:
    values, counts = np.unique(np.asarray(numbers, dtype=np.int64), return_counts=True)
    repeated = values[counts > 1]
    return int(repeated[0]) if len(repeated) else None
