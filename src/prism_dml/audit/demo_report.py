"""The demo's page: the comparison, the pictures and the worst suspects, one file to send around."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from prism_dml.files import replacing


@dataclass(frozen=True)
class Picture:
    """A picture of the report."""

    file: Path
    """PNG to show; it is copied into the page."""
    caption: str
    """What is seen, in a sentence; also read out to those who cannot see it."""
    half: bool = False
    """Whether it takes half of a wide page, beside the next such picture."""


@dataclass(frozen=True)
class Suspect:
    """A training image whose label looks wrong."""

    image: Image.Image
    """The image, shown about 100 pixels wide."""
    given_label: str
    """Its label in the data."""
    suggested_label: str
    """The label that the model would give it."""
    score: float
    """Score of the given label, low = suspicious."""
    is_wrong: bool | None = None
    """Whether the given label is truly wrong; None: the truth is unknown."""


def write_demo_report(
    folder: Path,
    *,
    summary: str,
    metrics: Mapping[str, Mapping[str, float]],
    pictures: Sequence[Picture],
    suspects: Sequence[Suspect],
    notes: Mapping[str, str] | None = None,
    highlight: str = "PRISM",
) -> Path:
    """Write ``report.html``: one page that needs no other file and no network.

    Args:
        folder: where to write it.
        summary: the result in a sentence or two.
        metrics: for each model, in order, the value of each measure, such as
            ``{"PRISM": {"Precision@1": 0.8}}``; a model that lacks a measure shows a dash.
        pictures: shown in order.
        suspects: shown in order, worst first.
        notes: facts of the run, such as the seed or the training time.
        highlight: the row of this name stands out.

    Returns:
        The file written.

    Raises:
        OSError: a picture cannot be read or the page not written.
    """
    environment = Environment(
        loader=PackageLoader("prism_dml", "audit"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    columns = list(dict.fromkeys(name for row in metrics.values() for name in row))
    page = environment.get_template("demo_report.html.j2").render(
        summary=summary,
        columns=columns,
        metrics=metrics,
        highlight=highlight,
        pictures=[(_data_uri(picture.file.read_bytes()), picture) for picture in pictures],
        suspects=[(_data_uri(_png(suspect.image)), suspect) for suspect in suspects],
        notes=notes or {},
    )
    out = folder / "report.html"
    with replacing(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="PNG")
    return buffer.getvalue()


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
