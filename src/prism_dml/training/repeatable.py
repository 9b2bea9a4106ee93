"""The same numbers again, on a GPU too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Within it, a GPU adds up in the same order each time, wherever torch has such an algorithm, and warns elsewhere.

    Otherwise gradients and class means differ by rounding from one run to the next, and after some hundred steps so do
    the labels that are trusted. Other devices add up in one order anyway. What has one order in any case (updates, and
    the memory, whose sums are exact) is better left outside: torch's own way to write to some rows is slow here.
    """
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    settings: Any = torch.utils.deterministic  # a module whose type does not tell what it holds
    mode, fill = torch.get_deterministic_debug_mode(), settings.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("warn")
    settings.fill_uninitialized_memory = False  # nothing here reads what it has not written
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        settings.fill_uninitialized_memory = fill
