"""What the blocks of a network see, beside the embedding that it ends in."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, normalize

from prism_dml.models.embedder import Embedder
from prism_dml.models.small import SmallConvNet

GRID = 2
"""Parts of an image in each direction, over which the map of a block is averaged."""

DIRECTIONS = 256
"""Leading directions that levels are compared in."""

_ENOUGH = 10_000  # samples to find these by


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
        backbone = getattr(self.embedder, "backbone", None)
        levels: list[Tensor] = []

        def average(block: nn.Module, images: tuple[Tensor, ...], maps: Tensor) -> None:
            levels.append(adaptive_avg_pool2d(maps, GRID).flatten(1).float())

        blocks = backbone.blocks if isinstance(backbone, SmallConvNet) else []
        handles = [block.register_forward_hook(average) for block in blocks]
        try:
            return torch.cat([self.embedder(images), *levels], dim=1)
        finally:
            for handle in handles:
                handle.remove()


def widths(embedder: Embedder) -> tuple[int, ...]:
    """Length of the level that each block makes; none but of SmallConvNet."""
    backbone = getattr(embedder, "backbone", None)
    return tuple(GRID**2 * width for width in backbone.widths) if isinstance(backbone, SmallConvNet) else ()


def side_by_side(levels: Tensor, widths: tuple[int, ...]) -> Tensor:
    """Levels (N, L) of a data set as unit rows: all numbers equally wide, all blocks equally long, side by side.

    Of more than `DIRECTIONS` numbers of more samples than that, the leading directions (N, `DIRECTIONS`). Rows of zeros
    stay. O(N.L) time and memory, beside 10,000 L^2 and L^3 for the directions.
    """
    known = (levels != 0).any(dim=1, keepdim=True)
    count = known.sum().clamp(min=1)
    rows = (levels - levels.sum(dim=0) / count) * known
    rows = rows / (rows.square().sum(dim=0) / count).sqrt().clamp(min=1e-6)
    rows = torch.cat([normalize(block, dim=1) for block in torch.split(rows, list(widths), dim=1)], dim=1)
    if min(rows.shape) > DIRECTIONS:
        some = rows[:: math.ceil(len(rows) / _ENOUGH)]
        # In float32 it may not converge where some numbers hang on others.
        _, directions = torch.linalg.eigh(
            (some.T @ some).double()
        )  # by how much of the rows lies in each, ascending
        rows = rows @ directions[:, -DIRECTIONS:].float()
    return normalize(rows, dim=1)
