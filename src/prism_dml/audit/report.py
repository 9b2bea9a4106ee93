"""The review page: an audit as one page that opens from disk, with no server and no network."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from prism_dml.audit.summary import Audit
from prism_dml.audit.thumbnails import COLUMNS, PER_SHEET, cell_side, draw_sheets
from prism_dml.data import ImageTable, sort_classes
from prism_dml.data.corrections import VERSION
from prism_dml.files import replacing

logger = logging.getLogger("prism_dml")

INSIDE = 2048
"""Up to so many pictures lie inside of the page, more in sheets beside it."""
SHEET_FOLDER = "report_images"
_SHEET = re.compile(r"\d+\.webp")
BINS = 40
"""Of the distribution of scores."""
PAIRS_SHOWN = 1000
"""Pairs of given and suggested class that the page knows of, the most frequent ones."""


def write_report(
    audit: Audit,
    folder: Path,
    name: str,
    table: ImageTable | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write ``report.html``, and ``report_images/`` beside it where there are many pictures.

    Warns, in one line, of images that cannot be read: the page says so in their places.

    Args:
        audit: what is shown.
        folder: where to write it.
        name: of the data, in the title.
        table: the audited samples, for their images; None: the page shows paths only.
        progress: called with (pictures drawn, pictures).

    Returns:
        The file written.

    Raises:
        ValueError: see `refuse_other_pictures`.
        OSError: the page cannot be written.
    """
    refuse_other_pictures(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shown = _shown_samples(audit)
    inside: list[str] = []
    sheets = None
    sheet_folder, partial_folder = folder / SHEET_FOLDER, folder / f".{SHEET_FOLDER}.partial"
    shutil.rmtree(partial_folder, ignore_errors=True)
    if table is not None and len(shown):
        side = cell_side(table, shown.tolist())
        sheets = {"side": side, "columns": COLUMNS, "count": len(shown), "folder": SHEET_FOLDER}
        sheets["inside"] = len(shown) <= INSIDE
        faults: dict[int, str] = {}
        for number, (sheet, unread) in enumerate(draw_sheets(table, shown.tolist(), side)):
            faults |= unread
            if sheets["inside"]:
                inside.append(base64.b64encode(sheet).decode("ascii"))
            else:
                partial_folder.mkdir(exist_ok=True)
                (partial_folder / f"{number:04d}.webp").write_bytes(sheet)
            if progress is not None:
                progress(min((number + 1) * PER_SHEET, len(shown)), len(shown))
        sheets["missing"] = list(faults)
        if faults:
            why = next(iter(faults.values()))
            logger.warning(
                "%d of %d images of the page cannot be read, e.g. %s", len(faults), len(shown), why
            )
    page = _render(_page_data(audit, name, shown, sheets), inside)
    out = folder / "report.html"
    with replacing(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
        shutil.rmtree(sheet_folder, ignore_errors=True)
        if partial_folder.is_dir():
            partial_folder.replace(sheet_folder)
    return out


def refuse_other_pictures(folder: Path) -> None:
    """ValueError if the folder that a page in `folder` keeps its pictures in holds anything else: it is replaced."""
    place = folder / SHEET_FOLDER
    other = next((file for file in sorted(place.glob("*")) if not _SHEET.fullmatch(file.name)), None)
    if other is not None:
        raise ValueError(
            f"{other}: {place} is for the pictures of an audit, and would be replaced; take another --out"
        )


def _render(data: dict[str, Any], sheets: list[str]) -> str:
    environment = Environment(
        loader=PackageLoader("prism_dml", "audit"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    package = files("prism_dml.audit")
    style, script = (package.joinpath(f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    # Names and paths are untrusted: as JSON without "<" they cannot end the script element that they lie in.
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return environment.get_template("report.html.j2").render(
        data=Markup(text),
        sheets=sheets,
        style=Markup(style),
        script=Markup(script),
        style_hash=_policy_hash(style),
        script_hash=_policy_hash(script),
    )


def _policy_hash(content: str) -> str:
    """By which a content security policy knows the one script, and the one style sheet, that may run."""
    return base64.b64encode(hashlib.sha256(content.encode("utf-8")).digest()).decode("ascii")


def _shown_samples(audit: Audit) -> NDArray[np.int64]:
    """Samples with a picture on the page, each suspect followed by its neighbours: what is seen together."""
    together = np.concatenate(
        [audit.suspects[:, None], audit.given_neighbours, audit.suggested_neighbours], axis=1
    )
    samples, first = np.unique(together[together >= 0], return_index=True)
    return samples[np.argsort(first)]


def _page_data(
    audit: Audit, name: str, shown: NDArray[np.int64], sheets: dict[str, Any] | None
) -> dict[str, Any]:
    """All that the page shows: columns of numbers, classes and kinds by their place in a list."""
    issues = audit.issues
    given, suggested = issues["given_label"].astype(str), issues["suggested_label"].astype(str)
    classes = sort_classes({*given.unique(), *suggested.unique()})
    number = {name: k for k, name in enumerate(classes)}
    part = issues.iloc[audit.suspects]
    kinds = sorted(issues["issue"].unique())
    near = shown if len(shown) else audit.suspects
    place = np.full(len(issues) + 1, -1, dtype=np.int64)  # the last is that of no neighbour, -1
    place[near] = np.arange(len(near))
    return {
        "version": VERSION,
        "fingerprint": audit.fingerprint,
        "name": name,
        "classes": classes,
        "kinds": kinds,
        "sheets": sheets,
        "suspects": {
            "index": audit.index[audit.suspects].tolist(),
            "path": [audit.paths[i] for i in audit.suspects],
            "given": [number[label] for label in given.iloc[audit.suspects]],
            "suggested": [number[label] for label in suggested.iloc[audit.suspects]],
            "score": _rounded(part["label_score"]),
            "suggestedScore": _rounded(part["suggested_score"]),
            "issue": [kinds.index(kind) for kind in part["issue"]],
            "picture": place[audit.suspects].tolist(),
            "givenNear": _places(place, audit.given_neighbours),
            "suggestedNear": _places(place, audit.suggested_neighbours),
        },
        "near": {"path": [audit.paths[i] for i in near], "picture": list(range(len(near)))},
        "overview": _overview(audit, number),
    }


def _overview(audit: Audit, number: dict[str, int]) -> dict[str, Any]:
    issues, classes = audit.issues, audit.classes
    scores = issues["label_score"].to_numpy(np.float64)
    is_issue = issues["is_label_issue"].to_numpy(bool)
    edges = np.linspace(0, 1, BINS + 1)
    confusion = audit.confusion.head(PAIRS_SHOWN)
    rows = np.full(len(issues), -1, dtype=np.int64)
    rows[audit.suspects] = np.arange(len(audit.suspects))
    return {
        "samples": len(issues),
        "issues": audit.num_issues,
        "kinds": issues.loc[is_issue, "issue"].replace("", "suspect").value_counts().to_dict(),
        "noiseRate": audit.noise_rate,
        "noiseInterval": list(audit.noise_interval),
        "ambiguous": [[number[name] for name in pair] for pair in audit.ambiguous_classes],
        "histogram": {
            "trusted": np.histogram(scores[~is_issue], edges)[0].tolist(),
            "suspect": np.histogram(scores[is_issue], edges)[0].tolist(),
        },
        "reliability": None
        if audit.reliability is None
        else audit.reliability[["label_score", "share_right", "count"]].to_numpy().tolist(),
        "classTable": {
            "name": [number[name] for name in classes["name"]],
            "samples": classes["samples"].tolist(),
            "suspects": classes["suspects"].tolist(),
            "wrongShare": _rounded(classes["wrong_share"]),
            "suggested": [number.get(name, -1) for name in classes["often_suggested"]],
        },
        "confusion": {
            "pairs": len(audit.confusion),
            "given": [number[name] for name in confusion["given"]],
            "suggested": [number[name] for name in confusion["suggested"]],
            "count": confusion["count"].tolist(),
        },
        "map": _map_places(audit) | {"row": rows[audit.map_samples].tolist()},
        "mapMethod": audit.map_method,
    }


def _map_places(audit: Audit) -> dict[str, list[int]]:
    """Places on the map in thousandths of its width and height."""
    low, high = audit.map_points.min(axis=0), audit.map_points.max(axis=0)
    scaled = (1000 * (audit.map_points - low) / np.maximum(high - low, 1e-9)).round().astype(int)
    return {"x": scaled[:, 0].tolist(), "y": scaled[:, 1].tolist()}


def _places(place: NDArray[np.int64], neighbours: NDArray[np.int64]) -> list[list[int]]:
    return [[int(p) for p in row if p >= 0] for row in place[neighbours]]


def _rounded(values: Any) -> list[float]:
    rounded: list[float] = np.round(np.asarray(values, dtype=np.float64), 4).tolist()
    return rounded
