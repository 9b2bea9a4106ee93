"""Which samples of a batch are rejected, given the share of wrong labels: top-R and smooth top-R."""

import math

import torch
from torch import Tensor, nn


class TopR(nn.Module):
    """Reject the R.B samples of a batch with the lowest probability; R.B < 1 rejects none (TRM).

    Source: PRISM (Liu et al., CVPR 2021), sec. 3.3.
    """

    def forward(self, probability: Tensor, known: Tensor, noise_rate: Tensor) -> tuple[Tensor, Tensor]:
        """Rejected samples (B,) and the lowest probability that stays, ().

        Args:
            probability: (B,) probability that the label is clean.
            known: (B,) whether it could be computed; the others are neither rejected nor counted in B.
            noise_rate: () R in [0, 1).
        """
        ordered, order = probability.masked_fill(~known, math.inf).sort(stable=True)
        number = (known.sum() * noise_rate + 1e-4).long()  # 10 * 0.3 is 2.9999... in floating point
        place = torch.arange(len(order), device=order.device)
        rejected = torch.zeros_like(known).scatter(0, order, place < number)
        return rejected, torch.where(place == number, ordered, 0.0).sum().clamp(max=1.0)


class SmoothTopR(nn.Module):
    """Reject probabilities below the mean of the R-quantiles of the last `window` batches (sTRM).

    Args:
        window: number of batches, at least 1.

    Source: PRISM (Liu et al., CVPR 2021), eq. 5 and 6.
    """

    quantiles: Tensor
    seen: Tensor

    def __init__(self, window: int) -> None:
        super().__init__()
        self.register_buffer("quantiles", torch.full((window,), math.nan))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, probability: Tensor, known: Tensor, noise_rate: Tensor) -> tuple[Tensor, Tensor]:
        """Rejected samples (B,) and the threshold, (); arguments as for `TopR`. R = 0 rejects none."""
        if len(probability) == 0:
            return known, self.quantiles.nanmean().nan_to_num(0.0)
        quantile = _quantile(probability, known, noise_rate)
        slot = self.seen % len(self.quantiles)
        self.quantiles[slot] = torch.where(known.any(), quantile, self.quantiles[slot])
        self.seen += known.any()
        threshold = self.quantiles.nanmean().nan_to_num(0.0) * (noise_rate > 0)
        # Equal probabilities (a collapsed network's) must not all fall to the rounding of their mean.
        return known & (probability < threshold * (1 - 1e-5)), threshold


def _quantile(values: Tensor, known: Tensor, share: Tensor) -> Tensor:
    """Linearly interpolated quantile of the known values, (); torch's waits for the device."""
    ordered = values.masked_fill(~known, math.inf).sort().values
    last = (known.sum() - 1).clamp(min=0)
    place = share.to(values) * last
    below = place.long()
    pair = ordered[torch.stack([below, torch.minimum(below + 1, last)])]
    return pair[0].lerp(pair[1], place - below)
