"""Pictures of a noisy training set and of what was learned from it.

matplotlib's Figure is used directly: pyplot's global state belongs to the caller. Colours are those of Okabe
and Ito (2008), told apart by people with any colour vision; where colour means something, a mark or a line
style says it too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike
from PIL import Image

from prism_dml.files import replacing

BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#7F7F7F"
DPI = 144


def plot_clean_probability(
    scores: ArrayLike,
    is_noisy: ArrayLike,
    out: Path,
    threshold: float | None = None,
    score_name: str = "Probability that the label is clean",
) -> None:
    """Draw how the score spreads over truly clean and truly wrong labels, and where the cut is.

    Args:
        scores: (N,) score of each label, high = trusted; NaN where a sample has none.
        is_noisy: (N,) bool, whether the label is truly wrong.
        out: PNG to write.
        threshold: labels that score below it are rejected; None draws no line.
        score_name: what the horizontal axis shows.

    Raises:
        ValueError: the arrays differ in length or hold no score.
    """
    values, wrong = np.asarray(scores, dtype=np.float64), np.asarray(is_noisy, dtype=bool)
    if values.shape != wrong.shape or values.ndim != 1:
        raise ValueError(f"one score is needed for each label, not {values.shape} for {wrong.shape}")
    known = np.isfinite(values)
    values, wrong = values[known], wrong[known]
    if not len(values):
        raise ValueError("there are no scores to draw")

    # A few outliers must not squeeze the rest into one bar: they are counted in the outermost bars.
    low, high = np.quantile(values, [0.002, 0.998])
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, 61)
    figure, axes = _canvas(8, 4.5)
    groups = [
        (f"label truly clean ({(~wrong).sum():,})", ~wrong, BLUE, None),
        (f"label truly wrong ({wrong.sum():,})", wrong, RED, "////"),
    ]
    for name, members, colour, hatch in groups:
        counts, _ = np.histogram(np.clip(values[members], low, high), edges)
        axes.stairs(counts, edges, fill=True, color=colour, alpha=0.35)
        axes.stairs(counts, edges, color=colour, linewidth=1.5)
        axes.stairs(counts, edges, fill=True, facecolor="none", edgecolor=colour, linewidth=0, hatch=hatch)
        axes.fill_between([], [], facecolor=(colour, 0.35), edgecolor=colour, hatch=hatch, label=name)
    title = "Scores of truly clean and truly wrong labels"
    if threshold is not None:
        axes.axvline(threshold, color="black", linestyle="--", linewidth=1.5, label="threshold")
        rejected = values < threshold
        title += (
            f"\nRejected, below the threshold: {_percent(rejected[wrong])} of the wrong and "
            f"{_percent(rejected[~wrong])} of the clean labels"
        )
    axes.set_title(title, loc="left")
    axes.set_xlabel(f"{score_name}  (low = suspicious)")
    axes.set_ylabel("Training images")
    axes.set_xlim(low, high)
    axes.legend(framealpha=1, edgecolor="none")  # or the threshold runs through its words
    _write(figure, out)


def plot_retrieval(
    queries: Sequence[Image.Image],
    neighbours: Sequence[Sequence[Image.Image]],
    is_hit: ArrayLike,
    title: str,
    out: Path,
) -> None:
    """Draw a sheet with a row for each query: the query, then its nearest images, framed by right and wrong.

    Args:
        queries: Q images.
        neighbours: Q rows of K images, nearest first.
        is_hit: (Q, K) bool, whether a neighbour has the query's class.
        title: what is seen, such as the model's name.
        out: PNG to write.

    Raises:
        ValueError: there is no query, or rows differ in length.
    """
    hits = np.asarray(is_hit, dtype=bool)
    if not queries:
        raise ValueError("a retrieval sheet needs at least one query")
    count, width = hits.shape
    if len(queries) != count or len(neighbours) != count or any(len(row) != width for row in neighbours):
        raise ValueError(f"{count} queries with {width} neighbours each are needed to go with is_hit")

    figure, axes = _canvas(1.15 * (width + 1.4), 1.15 * count + 1.1)
    axes.set_xlim(-0.55, width + 0.95)
    axes.set_ylim(count - 0.45, -0.75)  # first row on top
    axes.set_aspect("equal")
    axes.axis("off")
    axes.set_title(f"{title}\n{hits.sum()} of {hits.size} neighbours show the query's class", loc="left")
    axes.text(0, -0.6, "query", ha="center", fontsize=10)
    for column in range(width):
        axes.text(column + 1.4, -0.6, f"{column + 1}", ha="center", fontsize=10)
    axes.axvline(0.7, color=GREY, linewidth=0.8)
    for row in range(count):
        _tile(axes, queries[row], 0.0, row)
        for column in range(width):
            hit = hits[row, column]
            _tile(axes, neighbours[row][column], column + 1.4, row, GREEN if hit else RED, hit)
    figure.text(
        0.01, 0.005, "✓ solid frame: same class as the query     ✗ dashed frame: another class", fontsize=9
    )
    _write(figure, out)


def plot_training(
    steps: ArrayLike,
    out: Path,
    purity: ArrayLike | None = None,
    recall: ArrayLike | None = None,
    noise_rate_estimate: ArrayLike | None = None,
    true_noise_rate: float | None = None,
) -> None:
    """Draw how the selection fared over training.

    Args:
        steps: (T,) training steps.
        out: PNG to write.
        purity: (T,) share of the kept labels that are right, in [0, 1].
        recall: (T,) share of the right labels that are kept, in [0, 1].
        noise_rate_estimate: (T,) estimated share of wrong labels, in [0, 1].
        true_noise_rate: the true share, drawn as a level.

    Raises:
        ValueError: there is nothing to draw.
    """
    curves = [
        ("purity: kept labels that are right", purity, BLUE, "-"),
        ("recall: right labels that are kept", recall, GREEN, "--"),
        ("estimated noise rate", noise_rate_estimate, RED, "-."),
    ]
    if all(values is None for _, values, _, _ in curves):
        raise ValueError("there are no curves to draw")
    figure, axes = _canvas(8, 4.5)
    for name, values, colour, style in curves:
        if values is not None:
            axes.plot(np.asarray(steps), np.asarray(values), style, color=colour, linewidth=2, label=name)
    if true_noise_rate is not None:
        axes.axhline(
            true_noise_rate, color=GREY, linestyle=":", linewidth=2, label="true noise rate", zorder=1
        )
    axes.set_title("What was kept while training, against the truth", loc="left")
    axes.set_xlabel("Training step")
    axes.set_ylabel("Share")
    axes.set_ylim(0, 1.02)
    axes.margins(x=0.01)
    axes.grid(axis="y", color="0.9")
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    _write(figure, out)


def plot_precision(
    precision: Mapping[str, float],
    out: Path,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    highlight: str = "PRISM",
) -> None:
    """Draw Precision@1 of several models as labelled bars.

    Args:
        precision: name of each model and its Precision@1 in [0, 1], in the order to draw.
        out: PNG to write.
        intervals: (low, high) of some of them, drawn as whiskers.
        highlight: the bar of this name stands out.

    Raises:
        ValueError: there is no model.
    """
    if not precision:
        raise ValueError("there are no models to compare")
    names, values = list(precision), np.array(list(precision.values()))
    figure, axes = _canvas(8, 1.1 + 0.62 * len(names))
    colours = [BLUE if name == highlight else "#A9C4D6" for name in names]
    places = np.arange(len(names))
    axes.barh(places, values, color=colours, height=0.7)
    ends = values.copy()
    for place, name in enumerate(names):
        if intervals and name in intervals:
            low, high = intervals[name]
            axes.plot([low, high], [place, place], color="black", linewidth=1.5, marker="|", markersize=8)
            ends[place] = max(ends[place], high)
        weight = "bold" if name == highlight else "normal"
        axes.text(ends[place] + 0.012, place, f"{values[place]:.3f}", va="center", weight=weight)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.0 if ends.max() < 0.92 else 1.09)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_xlabel("Precision@1: queries whose nearest image shows the same class")
    axes.set_title("Retrieval of classes never seen in training", loc="left")
    axes.tick_params(axis="y", length=0)
    _write(figure, out)


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    return figure, axes


def _tile(
    axes: Axes, image: Image.Image, x: float, y: float, frame: str | None = None, hit: bool = True
) -> None:
    """An image centred at (x, y) within a unit square, its aspect kept, with a frame and a mark."""
    scale = 0.84 / max(image.size)
    half_width, half_height = image.width * scale / 2, image.height * scale / 2
    extent = (x - half_width, x + half_width, y + half_height, y - half_height)
    # Setting the limits back: imshow zooms to the last image otherwise.
    limits = axes.get_xlim(), axes.get_ylim()
    axes.imshow(np.asarray(image.convert("RGB")), extent=extent, interpolation="antialiased")
    axes.set_xlim(limits[0])
    axes.set_ylim(limits[1])
    if frame is not None:
        style = "-" if hit else (0, (2.2, 1.2))
        border = Rectangle((x - 0.45, y - 0.45), 0.9, 0.9, edgecolor=frame, linewidth=3, linestyle=style)
        border.set_facecolor("none")
        axes.add_patch(border)
        badge = {"boxstyle": "circle,pad=0.12", "facecolor": frame, "edgecolor": "white"}
        mark = axes.text(
            x + 0.4, y - 0.4, "✓" if hit else "✗", color="white", fontsize=8, bbox=badge, zorder=5
        )
        mark.set(ha="center", va="center")


def _percent(mask: np.ndarray) -> str:
    return f"{mask.mean():.1%}" if len(mask) else "none"


def _write(figure: Figure, out: Path) -> None:
    with replacing(out) as temporary:
        figure.savefig(temporary, format="png")
