"""What is counted while a run learns, on the device: nothing is copied to the CPU in a step."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Tally(nn.Module):
    """Counts over the steps since the last line of the log, and the last decision on each sample.

    Args:
        is_noisy: (N,) bool, whether each training label is wrong, or None if that is not known.
        num_samples: N.
    """

    is_noisy: Tensor
    kept: Tensor
    judged: Tensor
    counts: Tensor

    def __init__(self, num_samples: int, is_noisy: Tensor | None) -> None:
        super().__init__()
        self.truth_known = is_noisy is not None
        noisy = torch.zeros(num_samples, dtype=torch.bool) if is_noisy is None else is_noisy
        self.register_buffer("is_noisy", noisy, persistent=False)
        self.register_buffer("kept", torch.zeros(num_samples, dtype=torch.bool))  # (N,) the last decision
        self.register_buffer(
            "judged", torch.zeros(num_samples, dtype=torch.bool)
        )  # (N,) whether there was one
        # steps with an update, their loss, samples, kept samples, clean samples, kept clean samples
        self.register_buffer("counts", torch.zeros(6, dtype=torch.float64))

    def add(self, loss: Tensor | None, kept: Tensor, index: Tensor) -> None:
        """Count a step: loss (), None without an update; kept (B,) bool, index (B,)."""
        clean = ~self.is_noisy[index]
        if loss is not None:
            self.counts[:2] += torch.stack([torch.ones_like(loss), loss]).detach().double()
        decided = [torch.ones_like(kept).sum(), kept.sum(), clean.sum(), (kept & clean).sum()]
        self.counts[2:] += torch.stack(decided)
        self.kept[index] = kept
        self.judged[index] = True

    def take(self, decided: Tensor | None = None) -> dict[str, float | None]:
        """The counts as a record of the log, starting anew; purity and recall only where the truth is known.

        Args:
            decided: (N,) bool, what is kept of all samples, to be counted in the place of the steps' samples.
        """
        updates, loss, samples, kept, clean, kept_clean = self.counts.tolist()
        self.counts.zero_()
        if decided is not None:
            right = ~self.is_noisy
            samples, kept = float(len(decided)), float(decided.sum())
            clean, kept_clean = float(right.sum()), float((decided & right).sum())
        record = {"loss": _ratio(loss, updates), "rejected": _ratio(samples - kept, samples)}
        if self.truth_known:
            record |= {"purity": _ratio(kept_clean, kept), "clean_recall": _ratio(kept_clean, clean)}
        return record

    def final(self, decided: Tensor | None = None) -> dict[str, float | None]:
        """Purity and clean recall of what is kept at the end: by the last decision on each sample, or by `decided`."""
        if not self.truth_known:
            return {}
        kept, clean = self.kept & self.judged, ~self.is_noisy & self.judged
        if decided is not None:
            kept, clean = decided, ~self.is_noisy
        both = float((kept & clean).sum())
        return {"purity": _ratio(both, float(kept.sum())), "clean_recall": _ratio(both, float(clean.sum()))}


def _ratio(part: float, whole: float) -> float | None:
    """part / whole, None if there is nothing to divide by."""
    return part / whole if whole else None
