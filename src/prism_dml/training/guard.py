"""Steps whose loss or gradient is not finite."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from prism_dml.models import Embedder
from prism_dml.selection import MemoryBank


class Guard(nn.Module):
    """Leaves out steps that would make the weights useless, as if they had not been; ends a run of too many.

    Several processes decide alike: they have the same loss, and their gradients are averaged before.

    Args:
        method: the method whose steps are watched.
        limit: so many such steps in a row end the run, at least 1.
    """

    skipped: Tensor
    in_a_row: Tensor

    def __init__(self, method: nn.Module, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.register_buffer("skipped", torch.tensor(0))  # in the whole run
        self.register_buffer("in_a_row", torch.tensor(0))
        self._parameters_of = list(method.parameters())
        # Batch statistics and thresholds change while a batch is scored; a memory only after the update, and what a
        # method itself holds, such as a matrix of all classes, between epochs.
        self._buffers_of = [
            buffer
            for module in method.modules()
            if module is not method and not isinstance(module, MemoryBank)
            for buffer in module.buffers(recurse=False)
        ]
        self._before: list[Tensor] = []
        self._embeddings: list[Tensor] = []  # of the step's batch
        for module in method.modules():
            if isinstance(module, Embedder):
                # No method of this, which would be copied with a network that is (`Embedder.mapped`).
                module.register_forward_hook(lambda *step: self._look(*step))

    def remember(self) -> None:
        """Before a step: keep what scoring a batch changes."""
        self._embeddings = []
        self._before = [buffer.clone() for buffer in self._buffers_of]

    def accepts(self, loss: Tensor | None, step: int) -> bool:
        """Whether the step can be made: loss () and all gradients are finite. If not, it is undone and counted.

        Without a loss, since no sample is kept, the embeddings have to be finite: of others none is ever kept.

        Raises:
            ValueError: it was one too many.
        """
        if loss is None:
            finite = all(bool(embeddings.isfinite().all()) for embeddings in self._embeddings)
        else:
            # One look at the device for both; clipping to no limit is how every torch that Prism admits tells the norm.
            norm = nn.utils.clip_grad_norm_(self._parameters_of, math.inf)
            finite = bool(torch.isfinite(loss.detach() + norm))
        if finite:
            self.in_a_row.zero_()
            return True
        for buffer, before in zip(self._buffers_of, self._before, strict=True):
            buffer.copy_(before)
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row >= self.limit:
            raise ValueError(
                f"the loss or its gradient was not finite in {self.limit} steps in a row, up to step {step}: "
                "a lower lr may help"
            )
        return False

    def _look(self, embedder: nn.Module, images: object, embeddings: Tensor) -> None:
        if embedder.training:
            self._embeddings.append(embeddings.detach())
