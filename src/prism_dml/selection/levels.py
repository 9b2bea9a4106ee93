"""What several blocks of a network see, side by side, for a judge of labels to compare."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from prism_dml.selection.draw import some

DIRECTIONS, SAMPLES_EACH, MOST_DIRECTIONS = 256, 80, 1024
"""Leading directions that levels are compared in; of many samples one for so many of them, but no more than the last:
what is known of a direction comes from all of them, and each takes its time and memory."""

_ENOUGH = 5_000  # samples to find these by
_FARTHEST = 5.0  # standard deviations: a number that is hardly ever there is not all of a sample
_LEAST_SPREAD = 1e-4  # of a number, beside its largest value: below, it is always the same
_ROWS = 1024  # samples looked at together: a core's cache holds them


def num_compared(samples: int, numbers: int, most: int = MOST_DIRECTIONS) -> int:
    """How many numbers `side_by_side` makes of so many of so many samples, in at most so many directions."""
    directions = min(max(DIRECTIONS, samples // SAMPLES_EACH), most)
    return directions if min(samples, numbers) > directions else numbers


def side_by_side(
    levels: Tensor, widths: tuple[int, ...], beside: Tensor | None = None, most: int = MOST_DIRECTIONS
) -> Tensor:
    """Levels (N, L) of a data set as unit rows: all numbers equally wide, all blocks equally long, side by side.

    Of more numbers of more samples than `num_compared` says, so many leading directions, D. Where there are more than
    `DIRECTIONS` of both, the leading directions come last. Rows of zeros stay.
    O(N.L.D) time, beside 5,000 L^2 and L^3 for the directions; O(N.D) memory beside what is given.

    Args:
        levels: what the blocks see, one after the other; zeros where an image could not be read.
        widths: length of each block's part, L in all.
        beside: (N, M) rows to compare as they are, as one more block as long as they are; they count in L.
        most: directions, at least 1.
    """
    known = (levels != 0).any(dim=1, keepdim=True)
    mean, spread = _moments(levels, known)

    def rows(chosen: Tensor | slice) -> Tensor:
        """(n, L) of some samples."""
        wide = ((levels[chosen] - mean) / spread).clamp(-_FARTHEST, _FARTHEST) * known[chosen]
        blocks = [normalize(block, dim=1) for block in torch.split(wide, list(widths), dim=1)]
        return torch.cat(blocks if beside is None else [*blocks, beside[chosen].to(levels)], dim=1)

    parts = [slice(start, start + _ROWS) for start in range(0, len(levels), _ROWS)]
    numbers = levels.shape[1] + (0 if beside is None else beside.shape[1])
    count = num_compared(len(levels), numbers, most)
    if count == numbers and min(len(levels), numbers) <= DIRECTIONS:
        return normalize(torch.cat([rows(part) for part in parts]), dim=1)
    drawn = rows(some(len(levels), _ENOUGH, levels.device))
    # In float32 it may not converge where some numbers hang on others.
    _, directions = torch.linalg.eigh((drawn.T @ drawn).double())
    leading = directions[:, -count:].to(levels)
    compared = levels.new_empty(len(levels), count)
    for part in parts:  # not joined in the end: all would be there twice
        compared[part] = normalize(rows(part) @ leading, dim=1)
    return compared


def leading(rows: Tensor) -> Tensor:
    """The `DIRECTIONS` that matter most of rows (N, D) that `side_by_side` has made, as float32 unit rows."""
    few = (
        rows if len(rows) <= DIRECTIONS else rows[:, -DIRECTIONS:]
    )  # of no more samples than that there are all
    return normalize(few.float(), dim=1)


def joined(rows: Tensor, beside: Tensor) -> Tensor:
    """Unit rows (N, D) and others (N, M), equally long, side by side as unit rows (N, D + M). Rows of zeros stay."""
    whole = rows.new_empty(len(rows), rows.shape[1] + beside.shape[1])
    whole[:, : rows.shape[1]], whole[:, rows.shape[1] :] = rows, beside
    return whole.div_(whole.norm(dim=1, keepdim=True).clamp(min=1e-12))


def _moments(levels: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (L,) of what the known samples have."""
    count = known.sum().clamp(min=1)
    # In float32 within a part, in float64 over all of them: copies in float64 would take ten times as long.
    parts = torch.split(levels, _ROWS)
    mean = torch.stack([part.sum(dim=0) for part in parts]).sum(dim=0, dtype=torch.float64) / count
    centre, squares = mean.to(levels), []
    for part, there in zip(parts, torch.split(known, _ROWS), strict=True):
        squares.append(((part - centre) * there).square_().sum(dim=0))
    spread = (torch.stack(squares).sum(dim=0, dtype=torch.float64) / count).sqrt()
    largest = torch.stack([part.abs().amax(dim=0) for part in parts]).amax(dim=0)
    return centre, torch.maximum(spread.to(levels), _LEAST_SPREAD * largest.clamp(min=1e-12))
