"""Exact nearest neighbours in bounded memory."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CHUNK_BYTES = 16 * 2**20
"""Default size of the block of similarities held at once; a search takes a few times as much."""
_ROUNDING = 1e-6  # a length that differs by less from 1 is 1
_FEW = 8  # of so many similarities at most one is sorted by itself


def nearest_neighbours(
    query: Tensor | NDArray[np.floating],
    reference: Tensor | NDArray[np.floating] | None = None,
    k: int = 1,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Tensor, Tensor]:
    """The k references of highest cosine similarity to each query, in float32; equal ones by lower index.

    Args:
        query: (Q, D), any float type and device; rows are brought to unit length (a zero row stays zero).
        reference: (N, D), moved to the query's device; None: the queries, each without itself, by index.
        k: in [1, N], or in [1, N - 1] without reference.
        chunk_bytes: size of the block of similarities held at once.

    Returns:
        similarities (Q, k) float32, not increasing along a row, and indices (Q, k) int64 into the references.

    Raises:
        ValueError: wrong shapes, values that are not finite, or k out of range.
    """
    queries = unit_rows(query, "query")
    references = queries if reference is None else unit_rows(reference, "reference").to(queries.device)
    check_dimensions(queries, references)
    most = len(references) - (reference is None)
    if not 1 <= k <= most:
        raise ValueError(f"k must be from 1 to {most}, the number of references of a query, got {k}")
    if reference is None:
        return _among_themselves(queries, k, chunk_bytes)
    similarities = queries.new_empty(len(queries), k)
    indices = torch.empty(len(queries), k, dtype=torch.int64, device=queries.device)
    rows = rows_in_chunk(k, chunk_bytes)
    for start in range(0, len(queries), rows):
        part = slice(start, start + rows)
        similarities[part], indices[part] = top_references(queries[part], references, k, None, chunk_bytes)
    return similarities, indices


def unit_rows(embeddings: Tensor | NDArray[np.floating], name: str) -> Tensor:
    """Rows (N, D) of unit length in float32; a zero row stays zero. ValueError for other shapes and NaN."""
    rows = as_tensor(embeddings).detach()
    if rows.ndim != 2 or not rows.is_floating_point():
        raise ValueError(f"{name} must be floats of shape (N, D), got {rows.dtype} {tuple(rows.shape)}")
    largest = (
        torch.linalg.vector_norm(rows, ord=torch.inf, dim=1, keepdim=True) if rows.numel() else rows[:, :1]
    )
    if not largest.isfinite().all():
        raise ValueError(f"{name} has values that are not finite")
    # Most often they have unit length already; a million of them is not copied for the last bit's sake.
    lengths = torch.linalg.vector_norm(rows, dim=1)
    if rows.dtype == torch.float32 and ((lengths - 1).abs() < _ROUNDING).all():
        return rows
    if rows.dtype != torch.float64:
        rows, largest = rows.float(), largest.float()
    # Scaled first, so that squares of very large or very small numbers neither overflow nor vanish.
    unit = (rows / largest).nan_to_num_(0.0)
    return unit.div_(torch.linalg.vector_norm(unit, dim=1, keepdim=True).clamp_(min=1e-12)).float()


def as_tensor(values: Tensor | NDArray[Any] | Sequence[Any]) -> Tensor:
    """Values as a tensor, on the memory of an array where that can be; TypeError if they are no numbers.

    A table of numbers (a pandas DataFrame) is an array, too; floats that torch has not become float64.
    """
    if hasattr(values, "__array__") and not isinstance(values, Tensor):
        values = np.asarray(values)
    if not isinstance(values, np.ndarray):
        return torch.as_tensor(values)
    if values.dtype.kind == "f" and (values.dtype.itemsize > 8 or not values.dtype.isnative):
        values = values.astype(np.float64)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "The given NumPy array is not writable"
        )  # nor is it written to here
        return torch.as_tensor(np.ascontiguousarray(values))  # strides may be negative


def check_dimensions(queries: Tensor, references: Tensor) -> None:
    """ValueError unless both have rows of the same length."""
    if queries.shape[1] != references.shape[1]:
        raise ValueError(f"query has {queries.shape[1]} dimensions, reference {references.shape[1]}")


def rows_in_chunk(k: int, chunk_bytes: int) -> int:
    """How many queries to search for at once, so that neither similarities nor k results outgrow a chunk."""
    if chunk_bytes < 1:
        raise ValueError(f"chunk_bytes must be at least 1, got {chunk_bytes}")
    # A block four times as wide as high: both sides long enough for a matrix product at full speed.
    return max(1, min(math.isqrt(chunk_bytes // 16), chunk_bytes // (16 * k)))


def top_references(
    queries: Tensor, references: Tensor, k: int, own: Tensor | None, chunk_bytes: int
) -> tuple[Tensor, Tensor]:
    """Similarities and indices (Q, k) of the best references of unit queries (Q, D), best first.

    own: (Q,) the reference that a query must not find; None: it may find all.
    """
    best, where = _nothing_found(queries, k)
    block = _Block(queries, chunk_bytes)
    columns = max(1, chunk_bytes // (4 * len(queries) + 1))
    for start in range(0, len(references), columns):
        similarities = block.product(queries, references[start : start + columns])  # (Q, C)
        if own is not None:
            inside = ((own >= start) & (own < start + similarities.shape[1])).nonzero().squeeze(1)
            similarities[inside, own[inside] - start] = -torch.inf
        _offer(best, where, similarities, start)
    return best, where


def _among_themselves(rows: Tensor, k: int, chunk_bytes: int) -> tuple[Tensor, Tensor]:
    """The k nearest others of each of unit rows (N, D): a similarity is computed once, for both of its rows."""
    best, where = _nothing_found(rows, k)
    block = _Block(rows, chunk_bytes)
    high = rows_in_chunk(k, chunk_bytes)
    wide = max(1, chunk_bytes // (4 * high))
    for top in range(0, len(rows), high):
        part = slice(top, top + high)
        for left in range(top, len(rows), wide):
            similarities = block.product(rows[part], rows[left : left + wide])
            if left == top:
                similarities.fill_diagonal_(-torch.inf)
            _offer(best[part], where[part], similarities, left)
            # Rows further down have met all rows above these, so each meets the others in order.
            below = max(left, top + high)
            others = slice(below, left + wide)
            _offer(best[others], where[others], similarities[:, below - left :].T, top)
    return best, where


class _Block:
    """Room for the similarities held at once."""

    def __init__(self, like: Tensor, chunk_bytes: int) -> None:
        self.room = like.new_empty(max(1, chunk_bytes // 4))

    def product(self, queries: Tensor, references: Tensor) -> Tensor:
        """Similarities (Q, C), overwritten by the next call."""
        room = self.room[: len(queries) * len(references)].view(len(queries), len(references))
        return torch.mm(queries, references.T, out=room)


def _nothing_found(queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    where = torch.full((len(queries), k), -1, device=queries.device)
    return torch.full_like(where, -torch.inf, dtype=queries.dtype), where


def _offer(best: Tensor, where: Tensor, similarities: Tensor, first: int) -> None:
    """Put similarities (Q, C) to the references from number `first` on among the best (Q, k) so far, in place.

    References come in order, so of equal ones those that were there before stay in front.
    """
    better = similarities > best[:, -1:]  # few, but for the first references
    number = int(better.count_nonzero())
    if number == 0:
        return
    if number > better.numel() // _FEW:
        values, columns = _top_of_chunk(similarities, min(best.shape[1], similarities.shape[1]))
        touched: Tensor | slice = slice(None)
    else:
        touched, values, columns = _by_row(better, similarities)
    values, order = torch.cat([best[touched], values], dim=1).sort(dim=1, descending=True, stable=True)
    numbers = torch.cat([where[touched], columns + first], dim=1).gather(1, order)
    best[touched], where[touched] = values[:, : best.shape[1]], numbers[:, : best.shape[1]]


def _by_row(chosen: Tensor, similarities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The rows (T,) with chosen places (Q, C), and what is there, (T, most) values and columns, -inf to fill up."""
    if chosen.stride(0) >= chosen.stride(1):
        rows, columns = chosen.nonzero(as_tuple=True)
    else:  # transposed: found in the order in which they lie in memory
        columns, rows = chosen.T.nonzero(as_tuple=True)
        rows, order = rows.sort(stable=True)
        columns = columns[order]
    counts = torch.bincount(rows, minlength=len(chosen))
    touched = counts.nonzero().squeeze(1)
    line = (counts > 0).cumsum(0)[rows] - 1
    place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    shape = len(touched), int(counts.max())
    values, numbers = similarities.new_full(shape, -torch.inf), rows.new_zeros(shape)
    values[line, place], numbers[line, place] = similarities[rows, columns], columns
    return touched, values, numbers


def _top_of_chunk(similarities: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """torch.topk, but equal values by lower column, which topk leaves open."""
    values, columns = similarities.topk(k, dim=1)
    # More values equal to the last one than topk had room for: it chose freely among them.
    cut = ((similarities >= values[:, -1:]).sum(dim=1) > k).nonzero().squeeze(1)
    columns[cut] = similarities[cut].sort(dim=1, descending=True, stable=True).indices[:, :k]
    # Equal values next to each other: put their columns in order.
    tied = (values[:, 1:] == values[:, :-1]).any(dim=1).nonzero().squeeze(1)
    ascending = columns[tied].sort(dim=1).values
    order = similarities[tied].gather(1, ascending).sort(dim=1, descending=True, stable=True).indices
    columns[tied] = ascending.gather(1, order)
    return values, columns
