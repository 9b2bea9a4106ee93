"""Lists of image files and labels: CSV with a header, and the header-less lists of the PRISM paper."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prism_dml.data.remote import RemoteFile
from prism_dml.data.table import FileImages, ImageTable, is_missing, listed

logger = logging.getLogger("prism_dml")

COLUMNS = frozenset({"path", "label", "clean_label", "is_noisy", "split"})
"""The columns that are read; others go through to what is written, see `cells`."""
_PAIR = re.compile(r"(?P<path>.*[^\s,])(?:\s*,\s*|\s+)(?P<label>-?\d+)")


@dataclass(frozen=True)
class _Rows:
    """The fields of a list by column, and the line that each row ends on."""

    file: Path | RemoteFile
    lines: list[int]
    columns: dict[str, list[str]]

    def required(self, name: str) -> list[str]:
        """A column in which every value is there; ValueError naming the line of the first that is not."""
        values = self.columns[name]
        for line, value in zip(self.lines, values, strict=True):
            if is_missing(value):
                raise ValueError(f"{self.file}, line {line}: no {name}")
        return values

    def clean_labels(self) -> list[str | None]:
        """True classes; None where the cell is empty and `is_noisy` says that the label is wrong."""
        values = self.columns["clean_label"]
        noisy = self.columns.get("is_noisy", [""] * len(values))
        for line, value, flag in zip(self.lines, values, noisy, strict=True):
            if is_missing(value) and flag.lower() not in ("true", "1"):
                raise ValueError(
                    f"{self.file}, line {line}: no clean_label; where the true class is none of the classes, "
                    "a column is_noisy must say true"
                )
        return [None if is_missing(value) else value for value in values]


def read_csv(file: Path | RemoteFile) -> ImageTable:
    """A CSV or tab-separated list as a table; paths are relative to the list's folder, or absolute.

    With a header: `path,label[,clean_label][,split]`. An empty `clean_label` is allowed where a column
    `is_noisy` says true: the true class is none of the classes. Without a header: `path,int` or
    `path int`; where the list of its clean samples lies next to it (see `companion_list`), the true class
    of the others counts as none of the classes.

    Raises:
        ValueError: not such a list, no rows, missing columns or values, with the line.
    """
    text = _read_text(file)
    names, delimiter = _header(text)
    if names:
        return _from_rows(_parse_rows(file, text, names, delimiter))
    return _from_pairs(_parse_pairs(file, text))


def cells(file: Path | RemoteFile) -> list[list[str]]:
    """The header and the rows of a list that `read_csv` has read, each cell as it is written."""
    text = _read_text(file, newline="")
    _, delimiter = _header(io.StringIO(text, newline=None).read())
    return [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True) if row]


def truth_list(file: Path) -> Path | None:
    """The list that `read_csv` of another takes the truth from: its companion, if it has no header."""
    companion = companion_list(file)
    return None if companion is None or _header(_read_text(file))[0] else companion


def companion_list(file: Path) -> Path | None:
    """The list of a noisy list's clean samples, if one lies next to it.

    For `CARS_0.5noised_train.csv`: `CARS_0.5noised_cleaned_train.csv`, else the name with "noisy" or "noised"
    replaced by "cleaned", else `CARS_cleaned.csv`.
    """
    stem = file.stem
    head, _, tail = stem.rpartition("_")
    names = [
        f"{head}_cleaned_{tail}",
        stem.replace("noisy", "cleaned"),
        stem.replace("noised", "cleaned"),
        f"{stem.partition('_')[0]}_cleaned",
    ]
    files = [file.with_name(name + file.suffix) for name in names if name != stem and "cleaned" not in stem]
    return next((candidate for candidate in files if candidate.is_file()), None)


def _header(text: str) -> tuple[list[str], str]:
    """The columns' names in the first line, and what is between them; no names: it is no header."""
    first = text.lstrip("\n").partition("\n")[0]
    for delimiter in "\t;,":
        names = _column_names(first, delimiter)
        if not COLUMNS.isdisjoint(names):
            return names, delimiter
    return [], ""


def _column_names(header: str, delimiter: str) -> list[str]:
    try:
        return [name.strip().lower() for name in next(csv.reader([header], delimiter=delimiter), [])]
    except csv.Error:  # it is none: a path in a list without a header may hold anything
        return []


def _from_rows(rows: _Rows) -> ImageTable:
    paths = rows.required("path")
    return ImageTable.from_names(
        FileImages(rows.file.parent, paths, rows.file),
        paths,
        rows.required("label"),
        rows.clean_labels() if "clean_label" in rows.columns else None,
        rows.required("split") if "split" in rows.columns else None,
    )


def _from_pairs(rows: _Rows) -> ImageTable:
    paths, labels = rows.columns["path"], rows.columns["label"]
    return ImageTable.from_names(
        FileImages(rows.file.parent, paths), paths, labels, _truth(rows.file, paths, labels)
    )


def _truth(file: Path | RemoteFile, paths: Sequence[str], labels: Sequence[str]) -> list[str | None] | None:
    """The labels that the companion list confirms, None for the others; None if there is no companion."""
    companion = companion_list(file) if isinstance(file, Path) else None
    if companion is None:
        return None
    try:
        columns = _parse_pairs(companion, _read_text(companion)).columns
    except ValueError as error:  # of this name, but something else, such as a corrected list
        logger.warning("%s: not taken for the list of the clean samples of %s: %s", companion, file, error)
        return None
    clean = dict(zip(columns["path"], columns["label"], strict=True))
    if not clean.keys() <= set(paths):  # of other images: a clean list of something else
        return None
    return [label if clean.get(path) == label else None for path, label in zip(paths, labels, strict=True)]


def _read_text(file: Path | RemoteFile, newline: str | None = None) -> str:
    try:
        text = io.TextIOWrapper(io.BytesIO(file.read_bytes()), "utf-8-sig", newline=newline).read()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not a text file in UTF-8 (byte {error.start})") from error
    if not text.strip():
        raise ValueError(f"{file}: the file is empty")
    return text


def _parse_rows(file: Path | RemoteFile, text: str, names: list[str], delimiter: str) -> _Rows:
    missing = [name for name in ("path", "label") if name not in names]
    if missing:
        raise ValueError(f"{file}: no column '{missing[0]}'; the columns are: {listed(names)}")
    repeated = [name for name in names if name in COLUMNS and names.count(name) > 1]
    if repeated:
        raise ValueError(f"{file}: more than one column '{repeated[0]}'")
    lines: list[int] = []
    rows: list[list[str]] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if row and len(row) != len(names):
                raise ValueError(
                    f"{file}, line {reader.line_num}: {len(row)} fields, but the header has {len(names)}"
                )
            if row:
                lines.append(reader.line_num)
                rows.append(row)
    except csv.Error as error:
        raise ValueError(f"{file}, line {reader.line_num}: {error}") from error
    if len(rows) < 2:
        raise ValueError(f"{file}: a header, but no rows")
    columns = {name: list(values) for name, values in zip(names, zip(*rows[1:], strict=True), strict=True)}
    stripped = {
        name: [value.strip() for value in columns[name]] for name in COLUMNS & columns.keys() - {"path"}
    }
    return _Rows(file, lines[1:], columns | stripped)


def _parse_pairs(file: Path | RemoteFile, text: str) -> _Rows:
    rows = _Rows(file, [], {"path": [], "label": []})
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        pair = _PAIR.fullmatch(line.strip())
        if pair is None:
            raise ValueError(
                f"{file}, line {number}: neither a header with path,label nor a path and a whole number: "
                f"{line.strip()[:60]!r}"
            )
        rows.lines.append(number)
        rows.columns["path"].append(pair["path"].strip('"'))
        rows.columns["label"].append(pair["label"])
    return rows
