"""The nearest neighbours of every sample of a data set, exact or, for many samples, nearly so."""

from __future__ import annotations

import math

import faiss
import numpy as np
import torch
from torch import Tensor

from prism_dml.retrieval.neighbours import CHUNK_BYTES, nearest_neighbours, top_references

EXACT_UP_TO = 20_000
"""Samples up to which the search is exact on a CPU: its time grows with their square."""

_CELLS_SEARCHED = 8  # finds some nine in ten of the true neighbours; where classes are tight, nearly all
_TRAINING_POINTS = 32  # of each cell's centre: few, as the cells need not be good, only equal in size
_QUERIES = 8192  # searched for at once


def neighbour_graph(embeddings: Tensor, k: int, exact_up_to: int | None = None) -> tuple[Tensor, Tensor]:
    """The k nearest others of each sample, by cosine.

    Exact on an accelerator and for few samples; beyond that a FAISS index (inverted file, 8 cells searched).

    Args:
        embeddings: (N, D) float32 unit vectors.
        k: in [1, N - 1].
        exact_up_to: so many are few; None: 20,000.

    Returns:
        similarities (N, k) float32, not increasing along a row, and sample numbers (N, k) int64.
    """
    few = EXACT_UP_TO if exact_up_to is None else exact_up_to
    if embeddings.device.type != "cpu" or len(embeddings) <= few:
        return nearest_neighbours(embeddings, k=k)
    rows = np.ascontiguousarray(embeddings.numpy())
    index = _index_of(rows)
    similarities = np.empty((len(rows), k), np.float32)
    indices = np.empty((len(rows), k), np.int64)
    for start in range(0, len(rows), _QUERIES):
        part = slice(start, start + _QUERIES)
        near, found = index.search(rows[part], k + 1)
        # The sample itself goes last, or, where its duplicates hide it, the farthest one goes.
        own = found == np.arange(start, start + len(found))[:, None]
        order = own.argsort(axis=1, kind="stable")[:, :k]
        similarities[part] = np.take_along_axis(near, order, axis=1)
        indices[part] = np.take_along_axis(found, order, axis=1)
    if len(lost := np.flatnonzero(indices[:, 0] < 0)):  # alone in the cells searched
        unit = torch.from_numpy(rows)
        exact = top_references(unit[lost], unit, k, torch.from_numpy(lost), CHUNK_BYTES)
        similarities[lost], indices[lost] = (part.numpy() for part in exact)
    # Cells of fewer than k samples: the nearest one found takes the missing places, and has no vote there.
    missing = indices < 0
    indices[missing] = np.broadcast_to(indices[:, :1], indices.shape)[missing]
    similarities[missing] = -1.0
    return torch.from_numpy(similarities), torch.from_numpy(indices)


def _index_of(rows: np.ndarray) -> faiss.IndexIVFFlat:
    """Inverted file of about 4 sqrt(N) cells."""
    cells = max(1, int(4 * math.sqrt(len(rows))))
    quantizer = faiss.IndexFlatIP(rows.shape[1])
    index = faiss.IndexIVFFlat(quantizer, rows.shape[1], cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter, index.cp.seed, index.cp.spherical = 5, 0, True
    index.cp.max_points_per_centroid, index.cp.min_points_per_centroid = _TRAINING_POINTS, 1
    step = max(1, len(rows) // (cells * _TRAINING_POINTS))
    index.train(np.ascontiguousarray(rows[::step]))
    index.add(rows)
    index.nprobe = min(_CELLS_SEARCHED, cells)
    return index
