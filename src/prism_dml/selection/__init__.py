"""Which samples can be trusted: memory bank, similarities, thresholds and the PRISM selector."""

from prism_dml.selection.bank import MemoryBank
from prism_dml.selection.noise_rate import NoiseRateEstimator
from prism_dml.selection.prism import PRISM
from prism_dml.selection.selection import CalibratedSelection, Selection
from prism_dml.selection.sharded import ShardedBank
from prism_dml.selection.threshold import SmoothTopR, TopR

__all__ = [
    "PRISM",
    "CalibratedSelection",
    "MemoryBank",
    "NoiseRateEstimator",
    "Selection",
    "ShardedBank",
    "SmoothTopR",
    "TopR",
]
