"""Noise-robust deep metric learning: embeddings from labels that cannot be trusted.

The public names are imported on first use (PEP 562): ``import prism_dml`` and ``prism --help`` stay quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prism_dml.audit.issues import find_label_issues
    from prism_dml.models import load
    from prism_dml.retrieval import retrieval_metrics
    from prism_dml.selection import PRISM, Selection

__version__ = "0.1.0"
__all__ = ["PRISM", "Selection", "__version__", "find_label_issues", "load", "retrieval_metrics"]

_MODULE_OF = {
    "PRISM": "prism_dml.selection",
    "Selection": "prism_dml.selection",
    "find_label_issues": "prism_dml.audit.issues",
    "load": "prism_dml.models",
    "retrieval_metrics": "prism_dml.retrieval",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value  # the next access finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
