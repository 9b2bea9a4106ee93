"""What the blocks of a network see, beside the embedding that it ends in."""

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from prism_dml.models.embedder import Embedder
from prism_dml.models.small import SmallConvNet

GRID = 2
"""Parts of an image in each direction, over which the map of a block is averaged."""


class WithLevels(nn.Module):
    """Images (B, 3, S, S) -> (B, D + L): the unit embeddings, and beside them the levels: what each block sees.

    That is the map of each block, averaged over the quarters of the image. Early blocks know less of the classes that
    are learned, wrong labels included, and more of the image. L = `GRID`^2 x channels of all blocks; 0 of a backbone
    whose blocks are not known, see `widths`. Source: hypercolumns, Hariharan et al., CVPR 2015.
    """

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        self.embedder = embedder
        self.train(embedder.training)

    def forward(self, images: Tensor) -> Tensor:
        """float32 under autocast too."""
        levels: list[Tensor] = []

        def average(block: nn.Module, images: tuple[Tensor, ...], maps: Tensor) -> None:
            levels.append(adaptive_avg_pool2d(maps, GRID).flatten(1).float())

        backbone = _known(self.embedder)
        handles = [block.register_forward_hook(average) for block in backbone.blocks] if backbone else []
        try:
            return torch.cat([self.embedder(images), *levels], dim=1)
        finally:
            for handle in handles:
                handle.remove()


def widths(embedder: Embedder) -> tuple[int, ...]:
    """Length of the level that each block makes; none but of SmallConvNet."""
    backbone = _known(embedder)
    return tuple(GRID**2 * width for width in backbone.widths) if backbone else ()


def _known(embedder: Embedder) -> SmallConvNet | None:
    backbone = getattr(embedder, "backbone", None)
    return backbone if isinstance(backbone, SmallConvNet) else None
