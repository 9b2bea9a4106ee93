"""Pictures of a comparison."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prism_dml.benchmark.jobs import Job, Place
from prism_dml.benchmark.protocol import Protocol
from prism_dml.benchmark.results import Record
from prism_dml.files import replacing

# Okabe and Ito (2008), as in the other pictures; with line styles and marks they tell 35 rows apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#7F7F7F")
STYLES = (("-", "o"), ("--", "s"), ("-.", "^"), (":", "D"), ((0, (5, 1, 1, 1, 1, 1)), "v"))
DPI = 144
HOLLOW: dict[str, Any] = {"linestyle": "none", "markerfacecolor": "white", "zorder": 3}
"""Look of a point of one run, which has no whisker; drawn over the points of an errorbar."""
CROWD = 8
"""Rows that can be told apart in one place of a picture, at most."""
Curve = tuple[list[float], list[float]]


def draw_plots(
    protocol: Protocol,
    places: Sequence[Place],
    tuning: Sequence[Job],
    results: dict[str, Record],
    folder: Path,
) -> list[Path]:
    """Draw all pictures for which there are results.

    For each data set and kind of noise Precision@1 against the rate, or row by row if there is but one; of many rows
    both, those of one rate row by row only; what no wrong label touches stands beside every noise, by all its seeds.
    For each data set the Precision@1 on validation classes over training, of the tuning's chosen runs; for each data
    set and noise purity and recall of the kept labels over training.

    Args:
        protocol: the comparison.
        places: of its grid.
        tuning: the runs of its tuning.
        results: successful records by key.
        folder: where to; made if there is something to draw.

    Returns:
        The files.
    """
    order = {row.name: place for place, row in enumerate(protocol.rows)}
    known = [(p, results[p.job.key]) for p in places if p.job is not None and p.job.key in results]
    pictures: list[Path] = []
    for data in dict.fromkeys(p.data for p, _ in known):
        mine = [(p, record) for p, record in known if p.data == data]
        levels = _levels(mine)
        # What rows are told of noise that is as it is does not make it another noise, but other runs.
        told = [(p.noise, p.rate if p.noise == "given" else None) for p, _ in mine if p.noise != "none"]
        for noise, rate in dict.fromkeys(told):
            share = "" if rate is None else f"_{rate:g}"
            file = folder / f"{data}_{noise}{share}_precision.png"
            inside = [
                m for m in mine if m[0].noise == "none" or (m[0].noise == noise and rate in (None, m[0].rate))
            ]
            pictures += _precision(file, f"{data}, {noise} noise", order, inside, levels)
        for noise, rate in dict.fromkeys((p.noise, p.rate) for p, _ in mine):
            share = "" if rate is None else f"_{rate:g}"
            inside = [(p, r) for p, r in mine if (p.noise, p.rate) == (noise, rate)]
            pictures += _kept(
                folder / f"{data}_{noise}{share}_kept.png", f"{data}, {noise}{share}", order, inside
            )
        pictures += _learning(folder / f"{data}_learning.png", data, order, mine, tuning, results)
    return pictures


def _levels(runs: Sequence[tuple[Place, Record]]) -> dict[str, list[float]]:
    """Precision@1 of each row that no wrong label touches, of each seed once: its runs stand at every noise."""
    levels: dict[str, dict[int, float]] = defaultdict(dict)
    for place, record in runs:
        if place.row.is_noise_free and place.job is not None:
            levels[place.row.name][place.job.seed] = record["metrics"]["precision_at_1"]
    return {name: list(seeds.values()) for name, seeds in levels.items()}


def _precision(
    file: Path,
    title: str,
    order: dict[str, int],
    runs: Sequence[tuple[Place, Record]],
    levels: dict[str, list[float]],
) -> list[Path]:
    values: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    given = [record.get("noise") for place, record in runs if place.noise == "given"]
    unknown = bool(given) and all(noise is None for noise in given)
    real = max((noise or 0.0 for noise in given), default=0.0)
    for place, record in runs:
        rate = real if place.noise == "given" else place.rate or 0.0
        if not place.row.is_noise_free:
            values[place.row.name][rate].append(record["metrics"]["precision_at_1"])
    contested = {rate for p, _ in runs if not p.row.is_reference for rate in values[p.row.name]}
    if not contested:
        return []
    if len(contested) == 1:
        rate = contested.pop()
        shown = title if unknown else f"{title}, {rate:.0%}"
        return _ranking(file, shown, {name: values[name][rate] for name in values} | levels)
    rankings: list[Path] = []
    for rate in sorted(contested):
        rows = {name: values[name][rate] for name in values if rate in values[name]} | levels
        if len(rows) > CROWD:
            ranking = file.with_name(f"{file.stem}_{rate:g}.png")
            rankings += _ranking(ranking, f"{title}, {rate:.0%}", rows)
    crowded = len(values | levels) > CROWD and any(len(rates) > 1 for rates in values.values())
    figure, (axes,) = _canvas(1)
    hollow = False
    for name in sorted(values | levels, key=order.__getitem__):
        look = _look(order[name])
        if name in levels:
            _level(axes, name, levels[name], look)
            continue
        rates = sorted(values[name])
        if crowded and len(rates) == 1:  # no curve, and too many such points to be told apart
            continue
        means, spreads = zip(*(_mean_and_spread(values[name][rate]) for rate in rates), strict=True)
        axes.errorbar(rates, means, spreads, label=name, capsize=2, **look)
        single = [rate for rate in rates if len(values[name][rate]) == 1]
        hollow |= bool(single)
        axes.plot(single, [values[name][rate][0] for rate in single], **look | HOLLOW)
    axes.set_title(f"{title}: retrieval on the test split", loc="left")
    axes.set_xlabel("Share of wrong labels (small cluster, open set: of dissolved classes)")
    axes.set_ylabel(_axis(hollow))
    return _write(figure, axes, file) + rankings


def _level(axes: Axes, name: str, values: Sequence[float], look: dict[str, Any]) -> None:
    """A horizontal line, in a band as wide as the seeds say."""
    middle, spread = _mean_and_spread(values)
    alone = len(values) == 1
    axes.axhline(middle, label=f"{name} (one run)" if alone else name, **look | {"marker": None})
    if not alone:
        axes.axhspan(middle - spread, middle + spread, color=look["color"], alpha=0.1, linewidth=0)


def _ranking(file: Path, title: str, values: dict[str, list[float]]) -> list[Path]:
    """Rows one below the other, the best on top: at one noise, thirty rows in one place could not be told apart."""
    names = sorted((name for name in values if values[name]), key=lambda name: mean(values[name]))
    figure, (axes,) = _canvas(1)
    means, spreads = zip(*(_mean_and_spread(values[name]) for name in names), strict=True)
    axes.errorbar(means, names, xerr=spreads, fmt="o", capsize=2, color=COLOURS[0])
    single = [name for name in names if len(values[name]) == 1]
    axes.plot([values[name][0] for name in single], single, "o", color=COLOURS[0], **HOLLOW)
    axes.grid(axis="x", color="0.9")
    axes.tick_params(axis="y", labelsize=8)
    axes.set_title(f"{title}: retrieval on the test split", loc="left")
    axes.set_xlabel(_axis(bool(single)))
    return _write(figure, axes, file)


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation; nan, which draws no whisker, where one run has none."""
    return mean(values), stdev(values) if len(values) > 1 else float("nan")


def _axis(hollow: bool) -> str:
    return "Precision@1: mean and standard deviation over the seeds" + ("; hollow: one run" if hollow else "")


def _learning(
    file: Path,
    data: str,
    order: dict[str, int],
    runs: Sequence[tuple[Place, Record]],
    tuning: Sequence[Job],
    results: dict[str, Record],
) -> list[Path]:
    """Curves of the grid's runs if they have validation classes, else of the best tuning run of each method."""
    curves: dict[str, list[list[list[float]]]] = defaultdict(list)
    for place, record in runs:
        if record.get("validation"):
            curves[place.row.name].append(record["validation"])
    best: dict[str, list[list[float]]] = {}
    for job in tuning if not curves else ():
        found = results.get(job.key)
        if (
            job.data == data
            and found
            and (job.row not in best or found["validation"][-1][1] > best[job.row][-1][1])
        ):
            best[job.row] = found["validation"]
    curves |= {name: [curve] for name, curve in best.items()}
    if not curves:
        return []
    figure, (axes,) = _canvas(1)
    for name in sorted(curves, key=order.__getitem__):
        steps, values = _average(curves[name])
        axes.plot(steps, values, label=name, **_look(order[name]))
    axes.set_title(f"{data}: training classes set aside", loc="left")
    axes.set_xlabel("Training step")
    axes.set_ylabel("Precision@1")
    return _write(figure, axes, file)


def _kept(file: Path, title: str, order: dict[str, int], runs: Sequence[tuple[Place, Record]]) -> list[Path]:
    """Purity and recall of the kept labels, for rows that ever rejected one."""
    panels = {"purity": "Kept labels that are right", "clean_recall": "Right labels that are kept"}
    curves: dict[tuple[str, str], list[list[list[float]]]] = defaultdict(list)
    for place, record in runs:
        held = record.get("curves", {})
        if any(held.get("rejected", ())) and not place.row.is_reference:
            for name in panels:
                pairs = [
                    [s, v] for s, v in zip(held["step"], held.get(name, ()), strict=False) if v is not None
                ]
                if pairs:
                    curves[place.row.name, name].append(pairs)
    if not curves:
        return []
    figure, axes = _canvas(2)
    for panel, (name, label) in zip(axes, panels.items(), strict=True):
        for row in sorted({row for row, _ in curves}, key=order.__getitem__):
            if curves.get((row, name)):
                steps, values = _average(curves[row, name])
                panel.plot(steps, values, label=row, **{**_look(order[row]), "marker": None})
        panel.set_title(label, loc="left")
        panel.set_xlabel("Training step")
        panel.set_ylim(0, 1.02)
    figure.suptitle(title, x=0.01, ha="left")
    return _write(figure, axes[-1], file)


def _average(curves: Sequence[Sequence[Sequence[float]]]) -> Curve:
    """Steps and mean values of the seeds' curves, at the steps that all of them have."""
    tables = [dict(zip(*zip(*curve, strict=True), strict=True)) for curve in curves]
    steps = sorted(set.intersection(*(set(table) for table in tables)))
    return [float(step) for step in steps], [
        float(np.mean([table[step] for table in tables])) for step in steps
    ]


def _look(place: int) -> dict[str, Any]:
    """Colour, line style and mark of a row, the same in every picture."""
    style, marker = STYLES[place // len(COLOURS) % len(STYLES)]
    look = {"color": COLOURS[place % len(COLOURS)], "linestyle": style, "marker": marker}
    return look | {"markersize": 4, "linewidth": 1.5}


def _canvas(panels: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(4 + 4.5 * panels, 6), dpi=DPI, layout="constrained", facecolor="white")
    axes = [figure.add_subplot(1, panels, place + 1) for place in range(panels)]
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_axisbelow(True)
        panel.grid(axis="y", color="0.9")
    return figure, axes


def _write(figure: Figure, legend_of: Axes, file: Path) -> list[Path]:
    handles, labels = legend_of.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, frameon=False, loc="outside right upper", fontsize=8)
    with replacing(file) as temporary:
        figure.savefig(temporary, format="png")
    return [file]
