"""A picture of what a search found: a row for each query, the query first."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from prism_dml.files import replacing

DPI = 120
CELL = 1.35
"""Inches from picture to picture."""
NAME_LENGTH = 16
"""Characters of a name under a picture."""


def plot_matches(
    queries: Sequence[tuple[Image.Image, str]],
    matches: Sequence[Sequence[tuple[Image.Image | None, str, float]]],
    out: Path,
) -> None:
    """Draw queries and the images that are most like them.

    Args:
        queries: Q images and their names.
        matches: for each query, best first: an image (None: there is none), its label and its similarity.
        out: PNG to write.

    Raises:
        ValueError: no queries, or not as many rows of matches.
    """
    if not queries or len(queries) != len(matches):
        raise ValueError(f"{len(queries)} queries do not go with {len(matches)} rows of matches")
    columns = 1 + max(map(len, matches))
    figure = Figure(
        figsize=(CELL * columns + 0.2, (CELL + 0.3) * len(queries) + 0.2), dpi=DPI, layout="constrained"
    )
    axes = figure.subplots(len(queries), columns, squeeze=False)
    for cell in axes.flat:
        cell.axis("off")
    for row, ((image, name), found) in enumerate(zip(queries, matches, strict=True)):
        axes[row, 0].imshow(image)
        # Names are data, not formulas: a dollar sign in one must not start any.
        axes[row, 0].set_title(f"query\n{_short(name)}", fontsize=8, parse_math=False, fontweight="bold")
        for column, (picture, label, similarity) in enumerate(found, start=1):
            if picture is not None:
                axes[row, column].imshow(picture)
            axes[row, column].set_title(f"{_short(label)}\n{similarity:.3f}", fontsize=8, parse_math=False)
    with replacing(out) as temporary, warnings.catch_warnings():
        # Of names in other scripts: a box is drawn for what the font lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(temporary, format="png")


def _short(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…"
