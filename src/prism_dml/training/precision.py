"""What a run computes in, where the machine cannot do what it was asked for."""

import torch

from prism_dml.training.config import Precision

FAST_BFLOAT16 = ("AVX512", "SVE256")
"""CPUs, as torch names what they can, on which bfloat16 is worth while. Without AVX-512 a convolution takes some twenty
times as long as in float32, and a whole training step ten times."""


def precision_on(kind: str, asked: Precision) -> Precision:
    """What is computed in on such a device: mixed precision is there for speed, and not taken where it has none.

    Args:
        kind: cpu or cuda.
        asked: see `TrainConfig.precision`.
    """
    slow = kind == "cpu" and torch.backends.cpu.get_cpu_capability() not in FAST_BFLOAT16
    return "32-true" if slow else asked
