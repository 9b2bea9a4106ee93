"""What the blocks of a network see, beside the embedding that it ends in."""

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from prism_dml.models.embedder import Embedder
from prism_dml.models.small import SmallConvNet

GRID = 4
"""Parts of an image in each direction, over which the map of a block is averaged."""

PRESSED = 256
"""Numbers that are kept of a block: directions at random, the same in each network, keep what is near to what."""


class WithLevels(nn.Module):
    """Images (B, 3, S, S) -> (B, D + L): the unit embeddings, and beside them the levels: what each block sees.

    That is the map of each block, averaged over the parts of the image, in `PRESSED` directions where it has more.
    Early blocks know less of the classes that are learned, wrong labels included, and more of the image. L is the sum
    of `widths`; 0 of a backbone whose blocks are not known. Source: hypercolumns, Hariharan et al., CVPR 2015;
    directions at random: Johnson and Lindenstrauss, 1984.
    """

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        self.embedder = embedder
        backbone, device = _known(embedder), next(embedder.parameters()).device
        self._blocks = backbone.blocks if backbone else []
        channels = backbone.widths if backbone else ()
        self._directions = [_directions(GRID**2 * width, device) for width in channels]
        self.train(embedder.training)

    def forward(self, images: Tensor) -> Tensor:
        """float32 under autocast too."""
        levels: list[Tensor] = []

        def average(block: nn.Module, images: tuple[Tensor, ...], maps: Tensor) -> None:
            level = adaptive_avg_pool2d(maps, GRID).flatten(1).float()
            directions = self._directions[len(levels)]
            with torch.autocast(level.device.type, enabled=False):
                levels.append(level if directions is None else level @ directions)

        handles = [block.register_forward_hook(average) for block in self._blocks]
        try:
            return torch.cat([self.embedder(images), *levels], dim=1)
        finally:
            for handle in handles:
                handle.remove()


def widths(embedder: Embedder) -> tuple[int, ...]:
    """Length of the level that each block makes; none but of SmallConvNet."""
    backbone = _known(embedder)
    return tuple(min(GRID**2 * width, PRESSED) for width in backbone.widths) if backbone else ()


def _directions(width: int, device: torch.device) -> Tensor | None:
    """Orthonormal (width, PRESSED); None where there are no more numbers than that."""
    if width <= PRESSED:
        return None
    directions = torch.empty(width, PRESSED)  # drawn on the CPU, for all devices alike
    return nn.init.orthogonal_(directions, generator=torch.Generator().manual_seed(0)).to(device)


def _known(embedder: Embedder) -> SmallConvNet | None:
    backbone = getattr(embedder, "backbone", None)
    return backbone if isinstance(backbone, SmallConvNet) else None
