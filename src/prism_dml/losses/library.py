"""Losses of pytorch-metric-learning as they are, safe under autocast and with an empty batch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class LibraryLoss(nn.Module):
    """A loss of pytorch-metric-learning, with its miner if it has one; class weights, if any, are its parameters."""

    def __init__(
        self, make: Callable[..., nn.Module], miner: nn.Module | None = None, seed: int = 0, **settings: Any
    ) -> None:
        """Build it; the global random state is left as it is.

        Args:
            make: the library's class.
            miner: chooses the pairs of a batch; None: all.
            seed: of the class weights' initial values.
            settings: the class's arguments.
        """
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.loss = make(**settings)
        self.miner = miner

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Loss () in float32; an empty batch gives 0 with a gradient of zeros.

        embeddings: (B, D) of unit length, any float dtype, autocast or not. labels: (B,) integers in [0, C).
        """
        # Converted first: the library would convert trained class weights to the embeddings' dtype instead.
        embeddings = embeddings.float()
        if not len(labels):
            return embeddings.sum() + sum(weight.sum() for weight in self.parameters()) * 0.0
        with torch.autocast(embeddings.device.type, enabled=False):
            pairs = None if self.miner is None else self.miner(embeddings, labels)
            loss: Tensor = self.loss(embeddings, labels, pairs)
        return loss
