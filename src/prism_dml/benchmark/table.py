"""table.md: the numbers of a comparison, and everything needed to trust them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from prism_dml.benchmark.jobs import Place, choose, tuning_jobs
from prism_dml.benchmark.protocol import RAW_PIXELS, Protocol, Row
from prism_dml.benchmark.results import Record
from prism_dml.files import replacing

HEADER = (
    *("row", "seeds", "P@1", "MAP@R", "gap closed, P@1", "gap closed, MAP@R"),
    *("wrong labels found", "purity", "AUROC", "noise estimated", "s/run"),
)
LEGEND = """\
Mean ± standard deviation over the seeds. Retrieval among the images of the test split; nothing is chosen on it.
Best of the rows that do not know the truth in **bold**, where there are two or more. *Gap closed*: (row - MCL) /
(oracle - MCL), by the MCL and the oracle of the same seed. *Wrong labels found*: share of the wrong labels that are
rejected; *purity*: share of the kept labels that are right; both by the trained model's judgement on every training
label, for rows that choose within batches only by the last decision on each; empty for rows that keep everything.
*AUROC*: of the trained model's probabilities that a label is right; not measured in the oldest runs. *Noise
estimated*: by rows that are not told the rate. *s/run*: median; the first on a frozen backbone embeds the images."""


@dataclass(frozen=True)
class Facts:
    """What the table says beside the numbers.

    Args:
        command: the exact command.
        pictures: files of pictures, relative to the table's folder.
        failed: records of runs that failed.
        done: runs that have succeeded, those of the tuning included.
        runs: all that the protocol asks for.
    """

    command: str
    pictures: Sequence[str]
    failed: Sequence[Record]
    done: int
    runs: int


def write_table(
    file: Path, protocol: Protocol, places: Sequence[Place], results: dict[str, Record], facts: Facts
) -> None:
    """Write the table.

    Args:
        file: Markdown file; replaced if it exists.
        protocol: the comparison.
        places: of its grid.
        results: successful records by key; what is missing is left out.
        facts: what else to say.
    """
    lines = [f"# {protocol.description or 'Comparison'}", "", f"    {facts.command}", ""]
    if facts.done < facts.runs:
        lines += [
            f"{facts.done} of {facts.runs} runs are done; what is missing is said below each table.",
            "",
        ]
    for name in ("versions", "machine"):
        lines += [f"{name.capitalize()}: {text}." for text in _by_row(places, results, name)] + [""]
    lines += [LEGEND, ""]
    for data, noise, rate in dict.fromkeys((place.data, place.noise, place.rate) for place in places):
        inside = [place for place in places if (place.data, place.noise, place.rate) == (data, noise, rate)]
        lines += [f"## {data}, {_noise(noise, rate)}", ""]
        lines += [*_section(protocol, inside, results), ""]
    lines += _tuning(protocol, results)
    if facts.failed:
        lines += ["## Failed", "", "The same command tries these runs again.", ""]
        lines += [
            f"- {r['data']}, {_noise(r['noise_kind'], r['rate'])}, seed {r['seed']}, {r['row']} ({r['kind']}): "
            f"{r['error']}"
            for r in facts.failed
        ] + [""]
    if facts.pictures:
        lines += ["## Pictures", "", *(f"![{Path(name).stem}]({name})" for name in facts.pictures), ""]
    with replacing(file) as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")


_NOISE_NAMES = {
    "none": "all labels right",
    "given": "labels as given",
    "small-cluster": "small cluster",
    "open-set": "open set",
}


def _noise(kind: str, rate: float | None) -> str:
    """Wrong labels in words."""
    share = "" if rate is None else f", rows told {rate:.0%}" if kind == "given" else f" {rate:.0%}"
    return _NOISE_NAMES.get(kind, kind) + share


def _by_row(places: Sequence[Place], results: dict[str, Record], name: str) -> list[str]:
    """Where runs took place or what made them, each once; the rows named, if they are not all of the same."""
    rows: dict[str, Counter[str]] = {}
    runs: Counter[str] = Counter()
    for place in places:
        if place.job and place.job.key in results:
            rows.setdefault(results[place.job.key][name], Counter())[place.row.name] += 1
            runs[place.row.name] += 1
    if len(rows) < 2:
        return list(rows)
    most, *others = sorted(rows, key=lambda text: -rows[text].total())
    named = {
        text: [row if runs[row] == count else f"part of {row}" for row, count in rows[text].items()]
        for text in others
    }
    return [most, *(f"{text}: {', '.join(named[text])}" for text in others)]


def _section(protocol: Protocol, places: Sequence[Place], results: dict[str, Record]) -> list[str]:
    """The table of one data set at one noise, and the best of each group."""
    runs: dict[str, dict[int, Record]] = {row.name: {} for row in protocol.rows}
    for place in places:
        if place.job is not None and place.job.key in results:
            # Raw pixels have no seed: one run stands at each.
            seed = place.job.seed if place.row.method == RAW_PIXELS else place.seed
            runs[place.row.name][seed] = results[place.job.key]
    rows = [row for row in protocol.rows if runs[row.name]]
    if not rows:
        return ["Nothing is finished yet."]
    contest = [row for row in rows if not row.is_reference]
    means = {
        m: {row.name: mean(_metric(runs[row.name], m)) for row in rows}
        for m in ("precision_at_1", "map_at_r")
    }
    best = {m: max((means[m][row.name] for row in contest), default=None) for m in means}
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    for row in rows:
        mine = runs[row.name]
        cells = [row.name, str(len(mine)) if row.method != RAW_PIXELS else ""]
        for metric in means:
            text = spread(_metric(mine, metric))
            top = len(contest) > 1 and row in contest and means[metric][row.name] == best[metric]
            cells.append(f"**{text}**" if top else text)
        cells += [_of_seeds(_gaps(protocol, runs, row, metric), len(mine), 2) for metric in means]
        known: list[tuple[int, Callable[[Record], Any]]] = [  # digits, value
            (2, lambda r: r.get("wrong_found")),
            (2, lambda r: r.get("purity")),
            (3, lambda r: r.get("auroc")),
            (2, lambda r: r.get("estimated") if r.get("told") == "auto" else None),
        ]
        cells += [
            _of_seeds([value for r in mine.values() if (value := get(r)) is not None], len(mine), digits)
            for digits, get in known
        ]
        cells.append(f"{median(r['seconds'] for r in mine.values()):.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    missing = _missing(places, results)
    lines += ["", missing] if missing else []
    groups = dict.fromkeys(row.group for row in contest if row.group)
    if len(groups) > 1:
        lines += ["", "Best of each group by Precision@1:", ""]
        for group in groups:
            name = max(
                (row.name for row in contest if row.group == group), key=means["precision_at_1"].__getitem__
            )
            lines.append(f"- {group}: {name}, {means['precision_at_1'][name]:.3f}")
    floor = max(
        (mean(_metric(runs[r.name], "precision_at_1")) for r in rows if r.method == RAW_PIXELS), default=0.0
    )
    below = [row.name for row in contest if means["precision_at_1"][row.name] < floor]
    if below:
        lines += ["", f"Worse than no training at all, below raw pixels: {', '.join(below)}."]
    return lines


def _missing(places: Sequence[Place], results: dict[str, Record]) -> str:
    """Which rows of a section were not run, or not with all seeds, in a line; empty if all were."""
    planned = Counter(place.row.name for place in places)
    done = Counter(place.row.name for place in places if place.job and place.job.key in results)
    absent = [name for name in planned if not done[name]]
    partly = [name for name, count in planned.items() if 0 < done[name] < count]
    named = "; ".join(absent)  # not by commas, which are in the names
    if len(absent) > len(done):
        named = f"{len(absent)} more rows that are planned"
    parts = [f"Not run here: {named}."] if absent else []
    parts += [f"Not with all seeds: {'; '.join(partly)}."] if partly else []
    return " ".join(parts)


def _metric(runs: dict[int, Record], metric: str) -> list[float]:
    return [record["metrics"][metric] for record in runs.values()]


def _gaps(protocol: Protocol, runs: dict[str, dict[int, Record]], row: Row, metric: str) -> list[float]:
    """(row - MCL) / (oracle - MCL) for each seed that has all three and an oracle above MCL."""
    ends = [
        next((runs[r.name] for r in protocol.rows if r.method == method and r.labels == "given"), {})
        for method in ("mcl", "oracle")
    ]
    closed = []
    for seed, record in runs[row.name].items():
        if row.method != RAW_PIXELS and all(seed in end for end in ends):
            low, high = (end[seed]["metrics"][metric] for end in ends)
            if high > low:
                closed.append((record["metrics"][metric] - low) / (high - low))
    return closed


def _of_seeds(values: Sequence[float], seeds: int, digits: int) -> str:
    """Their spread; and of how many seeds, if not of all that the row has."""
    text, count = spread(values, digits), len(values)
    return f"{text} ({count} seed{'s' * (count > 1)})" if 0 < count < seeds else text


def _tuning(protocol: Protocol, results: dict[str, Record]) -> list[str]:
    """The rule, and what it chose for each method on each data set."""
    rule = protocol.tuning
    if rule is None:
        return [
            "## Settings",
            "",
            "The published ones, and those of the protocol; nothing is chosen in this run.",
            "",
        ]
    lines = ["## Settings", ""]
    lines += [
        "One rule for all rows: settings as published; the learning rate (of methods with proxies: the pair of "
        f"rates, of network and proxies) is chosen for each method out of {len(rule.lr)}, by Precision@1 at the end "
        f"of a run of {rule.steps:.0%} of the steps, on {rule.validation:.0%} of the training classes, which are set "
        "aside (of the training images, if the test split has the training classes). Their labels are true, as those "
        "of the test split are, if the truth is known; the others are wrong as elsewhere "
        f"({_noise(rule.noise, rule.rate)}, seed {rule.seed}). Rows of one method share the choice, which is made on "
        "the first of them; then all training images are learned from.",
        "",
        "| data | method | tried: validation P@1 | chosen |",
        "|---|---|---|---|",
    ]
    for data in protocol.data:
        seen = set()
        for row in protocol.rows:
            jobs = tuning_jobs(protocol, data, row)
            choice = choose(jobs, results)
            if jobs and choice and row.tuning_group not in seen:
                seen.add(row.tuning_group)
                tried = "; ".join(
                    f"{_rates(job.settings)}: {results[job.key]['validation'][-1][1]:.3f}"
                    if job.key in results
                    else f"{_rates(job.settings)}: not finished"
                    for job in jobs
                )
                lines.append(f"| {data.name} | {row.tuning_group} | {tried} | {_rates(choice)} |")
    return [*lines, ""]


def _rates(settings: dict[str, Any]) -> str:
    return " / ".join(f"{settings[name]:g}" for name in ("lr", "proxy_lr") if name in settings)


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± standard deviation of some values; empty without any, the mean alone of one."""
    if not values:
        return ""
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")
