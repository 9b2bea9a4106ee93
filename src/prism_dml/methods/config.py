"""What can be set about a method; imports nothing heavy, so that the command line answers at once."""

import math
from dataclasses import dataclass
from typing import Literal

Similarity = Literal["centre", "exact", "vmf", "proxy"]
Threshold = Literal["smooth", "top-r"]
NoiseRate = float | Literal["auto"]


@dataclass
class MethodConfig:
    """Settings of a method.

    Args:
        method: Which method learns from the batches.
        noise_rate: Share of wrong labels in [0, 1), or auto to estimate it as training goes; refract takes auto only.
        similarity: What a sample is compared with: centre, exact (each remembered embedding), vmf, proxy.
        threshold: smooth (mean of the last batches' quantiles) or top-r (a fixed share of each batch).
        window: Number of batches over which the threshold is smoothed, at least 1.
        selection_warmup: Number of first steps in which every sample is kept.
        temperature: Of the softmax that makes probabilities of similarities, above 0; null: 1 with a given noise rate,
            as published, and with vmf, else 0.05.
        bank_size: Number of embeddings remembered; null: as many as there are training images.
        shard_bank: Let each of several processes hold a part of the memory only; the results are the same.
        margin: Cosine above which images of different labels are pushed apart, in [-1, 1).
        bank_weight: Weight of the memory's part of the loss, at least 0.
        rise_epochs: Epochs in which the share that co-teaching leaves out rises from 0 to the noise rate, at least 1;
            in a run shorter than twice those, as many equal parts of its first half.
    """

    method: str = "refract"
    noise_rate: NoiseRate = "auto"
    similarity: Similarity = "centre"
    threshold: Threshold = "smooth"
    window: int = 30
    selection_warmup: int = 0
    temperature: float | None = None
    bank_size: int | None = None
    shard_bank: bool = False
    margin: float = 0.5
    bank_weight: float = 1.0
    rise_epochs: int = 10

    def __post_init__(self) -> None:
        """ValueError on a value outside its range."""
        if self.noise_rate != "auto" and not 0 <= self.noise_rate < 1:
            raise ValueError(f"noise_rate must be auto or in [0, 1), not {self.noise_rate}")
        if self.window < 1 or self.selection_warmup < 0 or not 0 <= self.bank_weight < math.inf:
            raise ValueError("window must be at least 1; selection_warmup and bank_weight at least 0")
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be above 0, not {self.temperature}")
        if self.rise_epochs < 1:
            raise ValueError(f"rise_epochs must be at least 1, not {self.rise_epochs}")
        if self.bank_size is not None and self.bank_size < 1:
            raise ValueError(f"bank_size must be at least 1, not {self.bank_size}")
        if not -1 <= self.margin < 1:
            raise ValueError(f"margin must be in [-1, 1), not {self.margin}")
