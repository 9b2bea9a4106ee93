"""Exact nearest neighbours in bounded memory."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

CHUNK_BYTES = 16 * 2**20
"""Default size of the block of similarities held at once; a search takes a few times as much."""


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
    own = torch.arange(len(queries), device=queries.device) if reference is None else None
    similarities = queries.new_empty(len(queries), k)
    indices = torch.empty(len(queries), k, dtype=torch.int64, device=queries.device)
    rows = rows_in_chunk(len(references), k, chunk_bytes)
    for start in range(0, len(queries), rows):
        part = slice(start, start + rows)
        similarities[part], indices[part] = top_references(
            queries[part], references, k, None if own is None else own[part], chunk_bytes
        )
    return similarities, indices


def unit_rows(embeddings: Tensor | NDArray[np.floating], name: str) -> Tensor:
    """Rows (N, D) of unit length in float32; a zero row stays zero. ValueError for other shapes and NaN."""
    rows = torch.as_tensor(embeddings).detach()
    if rows.ndim != 2 or not rows.is_floating_point():
        raise ValueError(f"{name} must be floats of shape (N, D), got {rows.dtype} {tuple(rows.shape)}")
    if not rows.isfinite().all():
        raise ValueError(f"{name} has values that are not finite")
    # Scaled first, so that squares of very large or very small numbers neither overflow nor vanish.
    largest = rows.abs().amax(dim=1, keepdim=True) if rows.numel() else rows.new_ones(len(rows), 1)
    scaled = (
        rows.double() / largest.double() if rows.dtype == torch.float64 else rows.float() / largest.float()
    )
    return normalize(scaled.nan_to_num(0.0), dim=1).float()


def check_dimensions(queries: Tensor, references: Tensor) -> None:
    """ValueError unless both have rows of the same length."""
    if queries.shape[1] != references.shape[1]:
        raise ValueError(f"query has {queries.shape[1]} dimensions, reference {references.shape[1]}")


def rows_in_chunk(num_references: int, k: int, chunk_bytes: int) -> int:
    """How many queries to search for at once, so that neither similarities nor k results outgrow a chunk."""
    if chunk_bytes < 1:
        raise ValueError(f"chunk_bytes must be at least 1, got {chunk_bytes}")
    # At least 64, for speed, as long as the results are small: the references are cut as well then.
    return max(1, min(max(64, chunk_bytes // (4 * num_references + 1)), chunk_bytes // (16 * k)))


def top_references(
    queries: Tensor, references: Tensor, k: int, own: Tensor | None, chunk_bytes: int
) -> tuple[Tensor, Tensor]:
    """Similarities and indices (Q, k) of the best references of unit queries (Q, D), best first.

    own: (Q,) the reference that a query must not find; None: it may find all.
    """
    columns = max(1, chunk_bytes // (4 * len(queries) + 1))
    best, where = queries.new_empty(0), queries.new_empty(0, dtype=torch.int64)
    for start in range(0, len(references), columns):
        similarities = queries @ references[start : start + columns].T  # (Q, C)
        if own is not None:
            inside = ((own >= start) & (own < start + similarities.shape[1])).nonzero().squeeze(1)
            similarities[inside, own[inside] - start] = -torch.inf
        values, indices = _top_of_chunk(similarities, min(k, similarities.shape[1]))
        if start == 0:
            best, where = values, indices
            continue
        # What was found before has the lower indices and comes first, so a stable sort keeps ties in order.
        best, order = torch.cat([best, values], dim=1).sort(dim=1, descending=True, stable=True)
        best = best[:, :k]
        where = torch.cat([where, indices + start], dim=1).gather(1, order[:, :k])
    return best, where


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
