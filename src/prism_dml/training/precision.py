"""What a run computes in, where the machine cannot do what it was asked for."""

from typing import Literal

import torch

Precision = Literal["32-true", "bf16-mixed"]

WITHOUT_BFLOAT16 = ("AVX2", "DEFAULT")
"""CPUs, as torch names what they can, on which a convolution in bfloat16 takes some twenty times as long as in float32:
oneDNN computes it with AVX-512 and what came later only."""


def precision_on(kind: str, asked: Precision) -> Precision:
    """What is computed in on such a device: mixed precision is there for speed, and not taken where it has none.

    Args:
        kind: cpu or cuda.
        asked: see `TrainConfig.precision`.
    """
    slow = kind == "cpu" and torch.backends.cpu.get_cpu_capability() in WITHOUT_BFLOAT16
    return "32-true" if slow else asked
