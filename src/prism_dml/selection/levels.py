"""What several blocks of a network see, side by side, for a judge of labels to compare."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from prism_dml.selection.draw import some

DIRECTIONS = 256
"""Leading directions that levels are compared in."""

_ENOUGH = 10_000  # samples to find these by


def num_compared(samples: int, numbers: int) -> int:
    """How many numbers `side_by_side` makes of so many of so many samples."""
    return DIRECTIONS if min(samples, numbers) > DIRECTIONS else numbers


def side_by_side(levels: Tensor, widths: tuple[int, ...], beside: Tensor | None = None) -> Tensor:
    """Levels (N, L) of a data set as unit rows: all numbers equally wide, all blocks equally long, side by side.

    Of more than `DIRECTIONS` numbers of more samples than that, the leading directions (N, `DIRECTIONS`). Rows of zeros
    stay. O(N.L) time and memory, beside 10,000 L^2 and L^3 for the directions.

    Args:
        levels: what the blocks see, one after the other; zeros where an image could not be read.
        widths: length of each block's part, L in all.
        beside: (N, M) rows to compare as they are, as one more block as long as they are; they count in L.
    """
    known = (levels != 0).any(dim=1, keepdim=True)
    count = known.sum().clamp(min=1)
    rows = (levels - levels.sum(dim=0) / count) * known
    rows = rows / (rows.square().sum(dim=0) / count).sqrt().clamp(min=1e-6)
    blocks = [normalize(block, dim=1) for block in torch.split(rows, list(widths), dim=1)]
    rows = torch.cat(blocks if beside is None else [*blocks, beside.to(rows)], dim=1)
    if num_compared(*rows.shape) < rows.shape[1]:
        drawn = rows[some(len(rows), _ENOUGH, rows.device)]
        # In float32 it may not converge where some numbers hang on others. The leading directions come last.
        _, directions = torch.linalg.eigh((drawn.T @ drawn).double())
        rows = rows @ directions[:, -DIRECTIONS:].float()
    return normalize(rows, dim=1)
