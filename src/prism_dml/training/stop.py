"""Ctrl-C and SIGTERM end a run after the step at hand, not in the middle of one."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType

from prism_dml.models.files import CHECKPOINT


class RunStopped(KeyboardInterrupt):
    """A run was asked to stop and has left a checkpoint; `signal` is what asked."""

    def __init__(self, number: int, step: int, out: Path) -> None:
        super().__init__(number, step, out)
        self.signal, self.step, self.out = number, step, out

    def __str__(self) -> str:
        name = signal.Signals(self.signal).name
        return f"{name}: stopped after step {self.step}; --resume goes on from {self.out / CHECKPOINT}"


class StopRequest:
    """While it is entered, Ctrl-C and SIGTERM only set `signal`; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._handlers: dict[int, object] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.signal = number
