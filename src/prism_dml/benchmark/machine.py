"""Where a run took place, for the record."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

import prism_dml
from prism_dml.training.config import Precision
from prism_dml.training.precision import precision_on

LIBRARIES = ("torch", "timm", "pytorch-metric-learning", "faiss-cpu", "scikit-learn", "numpy")


def num_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_name(accelerator: str, precision: Precision) -> str:
    """The machine, its GPU if that is what is computed on, and whether it computes in what was not asked for."""
    name = f"{num_cores()} cores of {_cpu_model()}, {platform.system()}"
    if precision_on(accelerator, precision) != precision:
        name += ", in float32 as bfloat16 is slow"
    return f"{torch.cuda.get_device_name()}; {name}" if accelerator == "cuda" else name


def versions() -> str:
    """Versions of Prism, Python and the libraries that matter."""
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return f"prism-dml {prism_dml.__version__}, Python {platform.python_version()}, {libraries}"


def _cpu_model() -> str:
    """The processor's name, or its architecture where the system does not say."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
