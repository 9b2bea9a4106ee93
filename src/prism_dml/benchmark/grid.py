"""A whole comparison: tuning, the grid, the table and the pictures; stopped or killed, it goes on where it was."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prism_dml.benchmark.frozen import VECTORS
from prism_dml.benchmark.jobs import Choice, Job, Place, all_tuning_jobs, choose, grid_jobs, once, tuning_jobs
from prism_dml.benchmark.plots import draw_plots
from prism_dml.benchmark.pool import find_slots, run_jobs
from prism_dml.benchmark.protocol import DataSet, Protocol, Row
from prism_dml.benchmark.results import Record, append_record, done, failed, read_records
from prism_dml.benchmark.table import Facts, write_table
from prism_dml.benchmark.tables import data_fingerprint, resolve
from prism_dml.benchmark.worker import Slot
from prism_dml.files import held, refuse_unwritable
from prism_dml.training.stop import StopRequest

RESULTS, TABLE, PLOTS, WORK = "results.jsonl", "table.md", "plots", "unfinished"


class BenchmarkStopped(KeyboardInterrupt):
    """A comparison was asked to stop; the same call goes on. `signal` is what asked."""

    def __init__(self, number: int, text: str) -> None:
        self.signal = number
        super().__init__(f"{signal.Signals(number).name}: {text}; the same command goes on")


class Comparison:
    """A protocol and what is known of its runs.

    Args:
        protocol: the comparison.
        out: folder of the results.
        command: how it was called, for the table.

    Raises:
        ValueError: the folder's results are damaged.
    """

    def __init__(self, protocol: Protocol, out: Path, command: str) -> None:
        self.protocol, self.out, self.command = protocol, out, command
        self.records = read_records(out / RESULTS)
        self._fingerprints: dict[str, str] = {}

    def run(
        self,
        data_root: Path,
        workers: int | None = None,
        announce: Callable[[str], None] = lambda line: None,
        progress: Callable[[int, int, str], None] = lambda finished, total, left: None,
    ) -> dict[str, int]:
        """Do what is not done yet; runs that failed before are tried again.

        Args:
            data_root: folder that relative paths of data sets and weights start from.
            workers: processes at once; None: one for each GPU, without GPUs one for each core.
            announce: called with a line for each finished run.
            progress: called with the runs that are finished, all runs, and the time left in words.

        Returns:
            How many runs there are, have succeeded and have failed.

        Raises:
            ValueError: data or weights are not there, results are of other data, an argument is out of range, or
                another process is doing the same.
            OSError: results cannot be written there.
            BenchmarkStopped: SIGINT or SIGTERM came.
        """
        slots = find_slots(workers)
        for data in self.protocol.data:
            weights = {**self.protocol.recipe, **data.recipe}.get("weights")
            for path in filter(None, (data.path, data.test, weights)):
                if not resolve(path, data_root).exists():
                    raise ValueError(f"data set {data.name}: there is no {resolve(path, data_root)}")
        self._fingerprints = {data.name: data_fingerprint(data, data_root) for data in self.protocol.data}
        refuse_unwritable(self.out / RESULTS, make_folder=True)
        with held(self.out, "another process"):
            self.records = read_records(self.out / RESULTS)  # another may have gone on since
            self._refuse_other_data()
            self._do(slots, data_root, announce, progress)
        return self.counts()

    def _do(
        self,
        slots: Sequence[Slot],
        data_root: Path,
        announce: Callable[[str], None],
        progress: Callable[[int, int, str], None],
    ) -> None:
        clock = _Clock()

        def finished(job: Job, result: dict[str, Any]) -> None:
            self._record(job, result)
            counts = self.counts()
            left = clock.lap(counts["runs"] - counts["succeeded"] - counts["failed"])
            announce(f"{job.title}: {_summary(result)}; {left}")
            progress(counts["succeeded"] + counts["failed"], counts["runs"], left)

        with StopRequest() as stop:
            for jobs in (self.tuning, self.runs):  # the runs are known once the learning rates are chosen
                todo = [job for job in jobs() if job.key not in done(self.records)]
                counts = self.counts()
                progress(counts["succeeded"], counts["runs"], "")
                run_jobs(todo, slots, self.out / WORK, data_root, finished, lambda: stop.signal)
                if stop.signal is not None:
                    counts = self.counts()
                    self.write()
                    said = f"{counts['succeeded']} of {counts['runs']} runs are done"
                    raise BenchmarkStopped(stop.signal, said)
        self.write()
        self._clear()

    def _clear(self) -> None:
        """Remove what runs share while they are at work, and what those left that are recorded."""
        if not (self.out / WORK).is_dir():
            return
        for name in (VECTORS, *done(self.records)):
            shutil.rmtree(self.out / WORK / name, ignore_errors=True)
        if not any((self.out / WORK).iterdir()):
            (self.out / WORK).rmdir()

    def _refuse_other_data(self) -> None:
        """ValueError if a result is of other data at the same place; of old results that is not known."""
        results = done(self.records)
        for job in [*self.tuning(), *self.runs()]:
            before = results.get(job.key, {}).get("fingerprint")
            if before not in (None, self._fingerprints[job.data]):
                raise ValueError(
                    f"data set {job.data}: {self.out / RESULTS} has runs on other data, with other images or labels; "
                    "take another folder"
                )

    def tuning(self) -> list[Job]:
        """The runs by which learning rates are chosen."""
        return all_tuning_jobs(self.protocol)

    def places(self) -> list[Place]:
        """The places of the grid."""
        results = done(self.records)

        def chosen(data: DataSet, row: Row) -> Choice | None:
            return choose(tuning_jobs(self.protocol, data, row), results)

        return grid_jobs(self.protocol, chosen)

    def runs(self) -> list[Job]:
        """The runs of the grid, as far as learning rates are chosen."""
        return once(place.job for place in self.places() if place.job is not None)

    def counts(self) -> dict[str, int]:
        """How many runs there are, tuning included, have succeeded, and have failed."""
        places = self.places()
        keys = {
            job.key for job in [*self.tuning(), *(place.job for place in places if place.job is not None)]
        }
        total = len(keys) + sum(place.job is None for place in places)
        return {
            "runs": total,
            "succeeded": len(keys & done(self.records).keys()),
            "failed": len(keys & failed(self.records).keys()),
        }

    def write(self) -> None:
        """Write the table and the pictures of what is known so far."""
        results = done(self.records)
        keys = {job.key for job in [*self.tuning(), *self.runs()]}
        pictures = draw_plots(self.protocol, self.places(), self.tuning(), results, self.out / PLOTS)
        lost = [record for key, record in failed(self.records).items() if key in keys]
        counts = self.counts()
        facts = Facts(
            self.command,
            [picture.relative_to(self.out).as_posix() for picture in pictures],
            lost,
            counts["succeeded"],
            counts["runs"],
        )
        write_table(self.out / TABLE, self.protocol, self.places(), results, facts)

    def _record(self, job: Job, result: dict[str, Any]) -> None:
        record: Record = {"key": job.key, "kind": job.kind, "data": job.data, "noise_kind": job.noise}
        record |= {
            "rate": job.rate,
            "row": job.row,
            "method": job.method,
            "labels": job.labels,
            "seed": job.seed,
        }
        record |= {"fingerprint": self._fingerprints[job.data], "settings": job.settings, **result}
        append_record(self.out / RESULTS, record)
        self.records.append(record)


class _Clock:
    """How long is left, by how long the runs took so far."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.finished = 0

    def lap(self, left: int) -> str:
        """One more run is finished, so many are left."""
        self.finished += 1
        seconds = (time.monotonic() - self.start) / self.finished * left
        return f"{left} left, about {_duration(seconds)}"


def _summary(result: dict[str, Any]) -> str:
    if result["error"] is not None:
        return f"failed: {result['error']}"
    metrics, validation = result.get("metrics"), result.get("validation")
    text = f"P@1 {metrics['precision_at_1']:.3f}" if metrics else ""
    if not metrics and validation:
        text = f"validation P@1 {validation[-1][1]:.3f}"
    return f"{text}, {result['seconds']:.0f} s"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"
