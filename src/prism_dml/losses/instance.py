"""A loss that tells images apart by what is known of each beside its label."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize


class InstanceLoss(nn.Module):
    """Each sample shall find its own target among those of the batch: -log softmax_j(z_i.t_j / T) at j = i.

    All are unit vectors. No label is asked, so that wrong ones do no harm.

    Source: instance discrimination, Wu et al., CVPR 2018, over the batch by InfoNCE (van den Oord et al., 2018); beside
    labels, so that more is kept of an image than tells known classes apart: DiVA, Milbich et al., ECCV 2020.
    """

    def __init__(self, temperature: float = 0.2) -> None:
        """temperature: T > 0, else ValueError."""
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.temperature = temperature

    def forward(self, projected: Tensor, targets: Tensor) -> Tensor:
        """Mean loss () in float32 over the samples with a target; 0 if there is none. O(B^2.L) time.

        Args:
            projected: (B, L) z, of any length and float dtype.
            targets: (B, L) t, the same; a row of zeros is no target.
        """
        with torch.autocast(projected.device.type, enabled=False):
            own = torch.arange(len(projected), device=projected.device)
            known = (targets != 0).any(dim=1)
            cosines = normalize(projected.float(), dim=1) @ normalize(targets.float(), dim=1).T  # (B, B)
            losses = cross_entropy(cosines / self.temperature, own, reduction="none")
            return (losses * known).sum() / known.sum().clamp(min=1)
