"""Comparisons: methods against each other on the same noisy data, from training to tables and pictures."""

from prism_dml.benchmark.demo import DemoStopped, run_demo, summarise
from prism_dml.benchmark.demo_page import NAMES as MODEL_NAMES

__all__ = ["MODEL_NAMES", "DemoStopped", "run_demo", "summarise"]
