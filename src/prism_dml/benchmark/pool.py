"""Jobs in worker processes, one process a job: what breaks one leaves the others alone."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import connection, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from prism_dml.benchmark.jobs import Job
from prism_dml.benchmark.machine import num_cores
from prism_dml.benchmark.worker import LOG, RESULT, Slot, work

POLL = 0.2
"""Seconds from one look at a request to stop to the next."""
GRACE = 60
"""Seconds that a stopped run has to leave its checkpoint."""


def find_slots(workers: int | None) -> list[Slot]:
    """What so many workers compute on: the GPUs in turn, or equal shares of the CPU's cores.

    Args:
        workers: None: one for each GPU, without GPUs one for each core.

    Raises:
        ValueError: fewer than one worker.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    cores = num_cores()
    gpus = [str(number) for number in range(torch.cuda.device_count())]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible and gpus:
        gpus = [name.strip() for name in visible.split(",")][: len(gpus)]
    count = workers or len(gpus) or cores
    threads = max(1, cores // count)
    if gpus:
        return [Slot("cuda", gpus[number % len(gpus)], threads) for number in range(count)]
    return [Slot("cpu", None, threads)] * count


def run_jobs(
    jobs: Sequence[Job],
    slots: Sequence[Slot],
    folder: Path,
    data_root: Path,
    finished: Callable[[Job, dict[str, Any]], None],
    stop: Callable[[], object],
) -> None:
    """Run jobs, as many at once as there are slots, in their order.

    Args:
        jobs: what to do.
        slots: what to compute on.
        folder: each job has a folder in it, named by its key, until it is finished; if its process died, the job may
            go on from there.
        data_root: see `worker.run_job`.
        finished: called with a job and what `worker.work` wrote, or, if the process died, its error. What a job left
            is kept until this returns.
        stop: asked several times a second; true ends the running jobs, which leave checkpoints, and returns.
    """
    context = _context()
    waiting, free = deque(jobs), list(slots)
    running: dict[BaseProcess, tuple[Job, Slot]] = {}
    try:
        while (waiting or running) and not stop():
            while waiting and free:
                job, slot = waiting.popleft(), free.pop(0)
                place = folder / job.key
                place.mkdir(parents=True, exist_ok=True)
                process: BaseProcess = context.Process(target=work, args=(job, place, data_root, slot))
                with _signals_blocked():
                    process.start()
                running[process] = (job, slot)
            ready = connection.wait([process.sentinel for process in running], POLL)
            if stop():  # which may have reached the jobs too: those that ended on it have not failed
                break
            for process in [process for process in running if process.sentinel in ready]:
                process.join()
                job, slot = running.pop(process)
                free.append(slot)
                place = folder / job.key
                finished(job, _outcome(place, process.exitcode or 0))
                if (place / RESULT).is_file():
                    shutil.rmtree(place)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.join(GRACE)
            process.kill()
            process.join()


def _context() -> Any:
    """New processes that share nothing with this one, forked from a server that has done the slow imports once."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([work.__module__])
    resource_tracker.ensure_running()  # started with the server, it would take the block of signals away again
    return context


def _outcome(folder: Path, exit_code: int) -> dict[str, Any]:
    """What a finished process left, or of what it died."""
    file = folder / RESULT
    if file.is_file():
        result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return result
    if exit_code < 0:
        reason = f"killed by {signal.Signals(-exit_code).name}"
        reason += ", out of memory perhaps" if -exit_code == signal.SIGKILL else ""
    else:
        reason = f"ended with status {exit_code}"
    log = folder / LOG
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return {"error": f"the process was {reason}" + (f": {last}" if last else "")}


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """A signal to the whole group leaves the processes started here to their parent.

    The server from which they are forked must outlive SIGTERM: their parent would take them for ended without it. They
    themselves take SIGTERM again once they run, by which their parent ends them.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
