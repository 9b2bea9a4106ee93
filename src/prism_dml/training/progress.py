"""What a person sees of a run: two lines that are kept up to date on the terminal."""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text


class RunProgress:
    """Steps done, images/s, time left, and the newest record of the log; silent where nobody watches."""

    def __init__(self, title: str, steps: int, done: int = 0, shown: bool = True) -> None:
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task(title, total=steps, completed=done, rate="")
        self._facts = Text()
        shown = shown and console.is_terminal
        self._live = Live(Group(self._bar, self._facts), console=console) if shown else None
        self._recent: deque[tuple[float, int]] = deque(maxlen=30)
        self._images = 0
        self._known: dict[str, float] = {}

    def step(self, images: int) -> None:
        """One more step, of so many images."""
        self._images += images
        self._recent.append((time.monotonic(), self._images))
        (then, before), (now, after) = self._recent[0], self._recent[-1]
        rate = f"{(after - before) / (now - then):,.0f} images/s" if now > then else ""
        self._bar.update(self._task, advance=1, rate=rate)

    def reach(self, done: int, total: int) -> None:
        """So much is done of so much."""
        self._bar.update(self._task, completed=done, total=total)

    def record(self, record: dict[str, float | None]) -> None:
        """Show a record of the log; what it does not mention stays."""
        self._known |= {key: value for key, value in record.items() if value is not None}
        facts = [f"{label} {self._known[key]:{form}}" for key, label, form in _SHOWN if key in self._known]
        self._facts.plain = "  ".join(facts)

    def __enter__(self) -> RunProgress:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()


_SHOWN = (
    ("loss", "loss", ".3g"),
    ("rejected", "rejected", ".0%"),
    ("noise_rate_estimate", "noise", ".0%"),
    ("purity", "purity", ".1%"),
    ("clean_recall", "clean recall", ".1%"),
    ("validation_precision_at_1", "validation P@1", ".3f"),
    ("skipped_steps", "skipped steps", "d"),
)
