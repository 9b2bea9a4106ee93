"""Runs in processes side by side; each finished one is a line of a file, so that what was cut short goes on."""

import json
import multiprocessing
from collections.abc import Callable, Sequence
from pathlib import Path


def read_results(file: Path) -> list[dict]:
    """The finished runs; none if there is no such file."""
    if not file.exists():
        return []
    whole, _, cut = file.read_text().rpartition("\n")
    if cut:  # the last line, as the disk was full or the power went
        file.write_text(whole + "\n" * bool(whole))
    return [json.loads(line) for line in whole.splitlines()]


def run_all(
    run: Callable[[dict], dict],
    jobs: Sequence[dict],
    file: Path,
    workers: int,
    keys: Sequence[str],
    write_table: Callable[[list[dict]], object],
) -> None:
    """Do the jobs, each in a fresh process, and write the table anew after each.

    Args:
        run: what does a job and returns it with its results, `precision_at_1` and `seconds` among them.
        jobs: what is still to do.
        file: where the results go, after those that are there.
        workers: processes at once.
        keys: what names a job on the screen.
        write_table: called with all results.
    """
    results = read_results(file)
    with multiprocessing.get_context("spawn").Pool(workers, maxtasksperchild=1) as pool:
        for result in pool.imap_unordered(run, jobs):
            results.append(result)
            with file.open("a") as lines:
                lines.write(json.dumps(result) + "\n")
            facts = f"P@1 {result['precision_at_1']:.3f} {result['seconds']:.0f} s"
            print(*(result[key] for key in keys), facts, flush=True)
            write_table(results)
