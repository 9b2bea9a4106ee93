"""One process for each device of this machine, watched until all have ended."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess, parent_process
from typing import Any

import torch
from torch import multiprocessing
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.multiprocessing.spawn import start_processes

from prism_dml.training.stop import StopRequest

GRACE = 5.0
"""Seconds that the others have to say what they know once a process has failed; then they are ended."""


def launch(number: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in several new processes of this machine, as torchrun would.

    SIGINT and SIGTERM are passed on to all of them, as SIGTERM.

    Args:
        number: of processes, at least 1.
        function: what each calls, by name from a module; it finds its rank in the environment.
        arguments: of the function; each process gets a copy. Neither they nor what is returned may be tensors.

    Returns:
        What the function returned in the first process.

    Raises:
        ChildProcessError: a process was killed.
        RuntimeError: the function failed in a way of which it should not; the message has its traceback.
        Exception: ValueError, OSError, MemoryError or KeyboardInterrupt that the function raised.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(minutes=5))
    environment = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is here: no process starts one
        "TORCHELASTIC_RESTART_COUNT": "0",  # torch 2.4 asks for it
        "WORLD_SIZE": str(number),
        "LOCAL_WORLD_SIZE": str(number),
    }
    threads = max(1, torch.get_num_threads() // number)
    pipes = [multiprocessing.Pipe(duplex=False) for _ in range(number)]
    senders = [sender for _, sender in pipes]
    with StopRequest() as stop:
        processes = _start(number, (environment, threads, senders, function, arguments))
        try:
            _watch(processes, stop)
            lost = [rank for rank, process in enumerate(processes) if (process.exitcode or 0) < 0]
        finally:
            for process in processes:
                process.kill()
                process.join()
    # One that was killed may have been in the middle of its answer.
    ended = [
        pipe for (pipe, _), process in zip(pipes, processes, strict=True) if (process.exitcode or 0) >= 0
    ]
    answers = [pipe.recv() for pipe in ended if pipe.poll()]
    _raise_failure(answers, lost, processes, stop.signal)
    return answers[0]


def _start(number: int, arguments: tuple[Any, ...]) -> Sequence[BaseProcess]:
    """Start the processes with Ctrl-C ignored, which reaches them too: what is to be done about it they are told."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    try:
        context = start_processes(  # type: ignore[no-untyped-call]
            _work, arguments, number, join=False, start_method="spawn"
        )
    finally:
        if main:
            signal.signal(signal.SIGINT, before)
    return list(context.processes)


def _work(
    rank: int,
    environment: dict[str, str],
    threads: int,
    senders: list[Connection],
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    """What a process does: call the function, and send what comes of it."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    torch.set_num_threads(threads)
    # A spawned process would spawn its own, too: each that decodes images would load torch anew, for every pass.
    multiprocessing.set_start_method(None, force=True)
    try:
        senders[rank].send(function(*arguments))
    except KeyboardInterrupt as stopped:
        senders[rank].send(stopped)
    except (ValueError, OSError, MemoryError) as error:
        if os.environ.get("PRISM_DEBUG"):  # sent, it would lose where it came from
            traceback.print_exc()
        senders[rank].send(error)
        sys.exit(1)
    except Exception:
        senders[rank].send(RuntimeError(f"process {rank} failed\n{traceback.format_exc()}"))
        sys.exit(1)


def _end_with_parent() -> None:
    """End this process once the one that has started it is gone, by kill -9 perhaps: nobody would stop it any more."""
    parent = parent_process()
    assert parent is not None, "this is a child"
    parent.join()
    os._exit(1)


def _watch(processes: Sequence[BaseProcess], stop: StopRequest) -> None:
    """Wait until all have ended, or one has failed and the others had time to notice; pass a signal on, once."""
    told = False
    end = None
    while running := [process for process in processes if process.is_alive()]:
        wait([process.sentinel for process in running], timeout=0.2)
        if stop and not told:
            told = True
            for process in running:
                process.terminate()
        if end is None and any(process.exitcode for process in processes):
            end = time.monotonic() + GRACE
        if end is not None and time.monotonic() > end:
            return


def _raise_failure(
    answers: list[Any], lost: list[int], processes: Sequence[BaseProcess], stopped_by: int | None
) -> None:
    """Raise the failure that explains the others, if there is one."""
    errors = [answer for answer in answers if isinstance(answer, BaseException)]
    errors.sort(key=lambda error: isinstance(error, ChildProcessError))  # it misses another, which knows why
    stops = [error for error in errors if isinstance(error, KeyboardInterrupt)]
    if stops or (stopped_by is not None and (errors or lost)):
        error: Any = (
            stops[0]
            if stops
            else KeyboardInterrupt("stopped; if it has left a checkpoint, --resume goes on from there")
        )
        if stopped_by is not None:
            error.signal = stopped_by  # not that by which it was passed on
        raise error
    if expected := [error for error in errors if not isinstance(error, RuntimeError | ChildProcessError)]:
        raise expected[0]
    if lost:
        number = -(processes[lost[0]].exitcode or 0)
        raise ChildProcessError(
            f"process {lost[0]} of {len(processes)} was killed by {signal.Signals(number).name}, and the others with "
            "it; what was saved before is whole: `prism train --resume` or the same `prism embed` goes on from there"
        )
    if errors:
        raise errors[0]
    if mute := [rank for rank, process in enumerate(processes) if process.exitcode]:
        raise ChildProcessError(
            f"process {mute[0]} of {len(processes)} could not start: a script calls this under "
            'if __name__ == "__main__"'
        )
