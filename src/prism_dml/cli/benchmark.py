"""``prism benchmark``."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from prism_dml.cli.output import print_json


def benchmark(
    protocol: str,
    *,
    out: Path,
    workers: int | None = None,
    data_root: Path | None = None,
    json: bool = False,
) -> None:
    """Compare methods on the same wrong labels: methods x noise x seeds, resumable.

    The folder gets results.jsonl (a line for each run), table.md and plots/. Ctrl-C stops it, and the same command goes
    on where it was; runs that failed are tried again. Protocols that come with Prism: quick/grocery, quick/omniglot,
    quick/cifar100_sub, quick/cifar10n_worse, longer/cifar10n_worse, pretrained/grocery, pretrained/cifar100_sub,
    frozen/grocery, frozen/omniglot, frozen/cifar100_sub, frozen/cifar10n_worse (2 CPU cores); gpu/grocery, paper/cars,
    paper/cub, paper/sop, paper/cars98n, paper/food101n (a GPU).

    Args:
        protocol: YAML file, or name of a protocol that comes with Prism.
        out: Folder of the results.
        workers: Runs at once; one for each GPU, without GPUs one for each CPU core, if not given.
        data_root: Folder that the protocol's paths of data and weights start from; $PRISM_DATA if not given, else the
            current one.
        json: Print the counts of runs as JSON.

    Raises:
        ValueError: something is wrong with the protocol, a data set is not there, or runs have failed.
    """
    from prism_dml.benchmark.grid import TABLE, Comparison
    from prism_dml.benchmark.protocol import load_protocol

    root = data_root or Path(os.environ.get("PRISM_DATA") or ".")
    given = ["prism", "benchmark", protocol, "--out", str(out)]
    given += [] if workers is None else ["--workers", str(workers)]
    given += [] if data_root is None else ["--data-root", str(data_root)]
    comparison = Comparison(load_protocol(protocol), out, shlex.join(given))
    console = Console(stderr=True)
    columns = (
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress("runs", *columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("runs", total=None, left="")
        counts = comparison.run(
            root,
            workers,
            lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True),
            lambda finished, total, left: bar.update(task, completed=finished, total=total, left=left),
        )
    failed = counts["runs"] - counts["succeeded"]
    if json:
        print_json({"out": str(out), **counts})
    else:
        print(f"{counts['succeeded']} of {counts['runs']} runs are done: {out / TABLE}")
    if failed:
        raise ValueError(
            f"{failed} of {counts['runs']} runs failed, see {out / TABLE}; the same command tries again"
        )
