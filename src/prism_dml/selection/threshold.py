"""Which samples of a batch are rejected, given the share of wrong labels: top-R and smooth top-R.

Both take logarithms: where probabilities are so small that they vanish, their order is still there.
"""

import math

import torch
from torch import Tensor, nn

from prism_dml.selection.exact import ExactModule


class TopR(nn.Module):
    """Reject the R.B samples of a batch with the lowest probability; R.B < 1 rejects none (TRM).

    Source: PRISM (Liu et al., CVPR 2021), sec. 3.3.
    """

    def forward(self, log_probability: Tensor, known: Tensor, noise_rate: Tensor) -> tuple[Tensor, Tensor]:
        """Rejected samples (B,) and the lowest probability that stays, ().

        Args:
            log_probability: (B,) logarithm of the probability that the label is clean.
            known: (B,) whether it could be computed; the others are neither rejected nor counted in B.
            noise_rate: () R in [0, 1).
        """
        ordered, order = log_probability.masked_fill(~known, math.inf).sort(stable=True)
        number = (known.sum() * noise_rate + 1e-4).long()  # 10 * 0.3 is 2.9999... in floating point
        place = torch.arange(len(order), device=order.device)
        rejected = torch.zeros_like(known).scatter(0, order, place < number)
        return rejected, torch.where(place == number, ordered.exp(), 0.0).sum().clamp(max=1.0)


class SmoothTopR(ExactModule):
    """Reject probabilities below the mean of the R-quantiles of the last `window` batches (sTRM).

    Args:
        window: number of batches, at least 1.
        in_logarithms: average the logarithms of the quantiles, for probabilities that differ by orders of magnitude:
            their mean would be the largest one over their number, and the threshold above nearly all.

    Source: PRISM (Liu et al., CVPR 2021), eq. 5 and 6.
    """

    quantiles: Tensor
    seen: Tensor

    def __init__(self, window: int, in_logarithms: bool = False) -> None:
        super().__init__()
        self.in_logarithms = in_logarithms
        self.register_buffer("quantiles", torch.full((window,), math.nan))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, log_probability: Tensor, known: Tensor, noise_rate: Tensor) -> tuple[Tensor, Tensor]:
        """Rejected samples (B,) and the threshold, a probability (); arguments as for `TopR`. R = 0 rejects none."""
        if len(log_probability) == 0:
            return known, self._as_probability(self.quantiles.nanmean())
        values = log_probability if self.in_logarithms else log_probability.exp()
        quantile = _quantile(values, known, noise_rate)
        place = torch.arange(len(self.quantiles), device=known.device)  # indexing would wait for the device
        here = (place == self.seen % len(place)) & known.any()
        # masked_fill_ would wait for the value.
        self.quantiles.copy_(torch.where(here, quantile, self.quantiles))
        self.seen += known.any()
        threshold = self.quantiles.nanmean().where(noise_rate > 0, math.nan)  # nothing is below NaN
        # Equal probabilities (a collapsed network's) must not all fall to the rounding of their mean.
        return known & (values < threshold - 1e-5 * threshold.abs()), self._as_probability(threshold)

    def _as_probability(self, threshold: Tensor) -> Tensor:
        """The threshold (), 0 if there is none."""
        return (threshold.exp() if self.in_logarithms else threshold).nan_to_num(0.0)


def _quantile(values: Tensor, known: Tensor, share: Tensor) -> Tensor:
    """Linearly interpolated quantile of the known values, (); torch's waits for the device."""
    ordered = values.masked_fill(~known, math.inf).sort().values
    last = (known.sum() - 1).clamp(min=0)
    place = share.to(values) * last
    below = place.long()
    pair = ordered[torch.stack([below, torch.minimum(below + 1, last)])]
    return pair[0].lerp(pair[1], place - below)
