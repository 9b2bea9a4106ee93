"""Comparisons: methods against each other on the same noisy data, from training to tables and pictures."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prism_dml.benchmark.demo import DemoStopped, run_demo, summarise
    from prism_dml.benchmark.demo_page import NAMES as MODEL_NAMES
    from prism_dml.benchmark.grid import BenchmarkStopped, Comparison
    from prism_dml.benchmark.protocol import Protocol, load_protocol, shipped_protocols

__all__ = [
    "MODEL_NAMES",
    "BenchmarkStopped",
    "Comparison",
    "DemoStopped",
    "Protocol",
    "load_protocol",
    "run_demo",
    "shipped_protocols",
    "summarise",
]
_HOMES = {
    "MODEL_NAMES": ("demo_page", "NAMES"),
    "BenchmarkStopped": ("grid", "BenchmarkStopped"),
    "Comparison": ("grid", "Comparison"),
    "DemoStopped": ("demo", "DemoStopped"),
    "Protocol": ("protocol", "Protocol"),
    "load_protocol": ("protocol", "load_protocol"),
    "run_demo": ("demo", "run_demo"),
    "shipped_protocols": ("protocol", "shipped_protocols"),
    "summarise": ("demo", "summarise"),
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, and nothing else: a worker process must not wait for matplotlib."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(f"{__name__}.{module}"), attribute)
