"""What commands print: JSON on standard output, tables and progress on standard error or the terminal."""

import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from prism_dml.files import replacing

_ANY_WIDTH = 1_000_000
"""Columns, more than a line of a table has."""


class _Rate(ProgressColumn):
    """Units a second, over the recent past."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} {self._unit}/s")


def progress_bar(unit: str = "images", shown: bool = True) -> Progress:
    """A progress display on standard error: done of total, rate and time left; nothing where nobody watches.

    Args:
        unit: What is counted.
        shown: False for all but one of several processes.
    """
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not (shown and console.is_terminal),
    )


def to_json(result: dict[str, Any]) -> str:
    """A result as strict JSON: numbers that are not finite become null, since JSON has no NaN.

    Args:
        result: Of JSON's types, and numbers of numpy or one-element tensors.
    """
    return json.dumps(_plain(result), indent=2, ensure_ascii=False) + "\n"


def write_json(result: dict[str, Any], file: Path) -> None:
    """Write a result to a file, in one piece; see `to_json`.

    Args:
        result: what to write.
        file: replaced if it exists; its folder is made.
    """
    with replacing(file) as temporary:
        temporary.write_text(to_json(result), encoding="utf-8")


class _Console(Console):
    """One whose reader may have seen enough: that is told as by any print, see `main`."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on standard output; its first column is text, the others are numbers.

    No text is cut: what is too long for a terminal goes on below, and a file or a pipe gets lines of any length.

    Args:
        title: the line above it.
        header: names of the columns.
        rows: one text for each column.
    """
    table = Table(box=SIMPLE_HEAD)
    for position, name in enumerate(header):
        table.add_column(name, justify="right" if position else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = _Console(markup=False, emoji=False, highlight=False)  # names may hold brackets and colons
    if not console.is_terminal:
        console.width = _ANY_WIDTH
    console.print(title, soft_wrap=True)
    if table.row_count:
        console.print(table)


def print_json(result: dict[str, Any]) -> None:
    """Print a result for programs on standard output; see `to_json`."""
    sys.stdout.write(to_json(result))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):  # a number of numpy or torch
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
