"""How well embeddings retrieve samples of the same class."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prism_dml.retrieval.neighbours import (
    CHUNK_BYTES,
    as_tensor,
    check_dimensions,
    nearest_neighbours,
    rows_in_chunk,
    top_references,
    unit_rows,
)

_RESULT_CHUNKS = 8  # what is found by all queries at once may take so many chunks
_MACRO = ("precision_at_1", "r_precision", "map_at_r")

Embeddings = Tensor | NDArray[np.floating]
Labels = Tensor | NDArray[np.integer]


def retrieval_metrics(
    query: Embeddings,
    query_labels: Labels,
    reference: Embeddings | None = None,
    reference_labels: Labels | None = None,
    ks: Sequence[int] = (1, 2, 4, 8),
) -> dict[str, float]:
    """Means over the queries of Precision@1, R-Precision, MAP@R and Recall@K, each in [0, 1].

    Args:
        query: (Q, D), brought to unit length; torch or numpy, any float type.
        query_labels: (Q,) integers.
        reference: (N, D) to search in; None: the queries themselves, each without itself, by index.
        reference_labels: (N,) integers, given with reference.
        ks: the K of Recall@K, each >= 1.

    Returns:
        precision_at_1, r_precision, map_at_r, recall_at_K for each K; macro_precision_at_1,
        macro_r_precision, macro_map_at_r, means over classes of the class's mean; num_queries, with a
        reference of their label, and num_skipped, without one, which count in nothing else.

    Raises:
        ValueError: wrong shapes, values that are not finite, or no query with a reference of its label.

    Source: Musgrave et al., A Metric Learning Reality Check (ECCV 2020), for MAP@R and R-Precision.
    """
    scores = retrieval_scores(query, query_labels, reference, reference_labels, ks)
    counted = scores["precision_at_1"].isfinite()
    if not counted.any():
        raise ValueError("no query has a reference with its label: there is nothing to retrieve")
    metrics = {name: values[counted].mean().item() for name, values in scores.items()}
    labels = as_tensor(query_labels).cpu()[counted].numpy()
    _, classes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    for name in _MACRO:
        sums = np.bincount(classes, weights=scores[name][counted].numpy())
        metrics[f"macro_{name}"] = float((sums / sizes).mean())
    return metrics | {"num_queries": int(counted.sum()), "num_skipped": int((~counted).sum())}


def retrieval_scores(
    query: Embeddings,
    query_labels: Labels,
    reference: Embeddings | None = None,
    reference_labels: Labels | None = None,
    ks: Sequence[int] = (1, 2, 4, 8),
    chunk_bytes: int = CHUNK_BYTES,
) -> dict[str, Tensor]:
    """What `retrieval_metrics` averages, query by query: precision_at_1, r_precision, map_at_r, recall_at_K.

    Arguments and errors as there; chunk_bytes: size of the block of similarities held at once. Each value is
    (Q,) float64 on the CPU, NaN for a query without a reference of its label.
    """
    queries = unit_rows(query, "query")
    labels = _checked_labels(query_labels, queries, "query")
    if (reference is None) != (reference_labels is None):
        raise ValueError("reference and reference_labels must be given together")
    if reference is None or reference_labels is None:
        references, targets = queries, labels
    else:
        references = unit_rows(reference, "reference").to(queries.device)
        targets = _checked_labels(reference_labels, references, "reference")
    check_dimensions(queries, references)
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must be numbers from 1, got {tuple(ks)}")

    itself = int(reference is None)
    most = len(references) - itself
    relevant = _occurrences(labels, targets) - itself  # (Q,), R of each query
    names = ["precision_at_1", "r_precision", "map_at_r", *(f"recall_at_{k}" for k in ks)]
    scores = torch.full((len(names), len(queries)), torch.nan, dtype=torch.float64)
    # Queries with as many relevant references as each other go together, no deeper than they need.
    counts, order = relevant.sort(stable=True)
    order = order[counts > 0]
    every = None
    if itself and len(order):
        deepest = min(most, max(int(counts[-1]), *ks))
        if 16 * deepest * len(queries) <= _RESULT_CHUNKS * chunk_bytes:  # if there is room, half the work
            every = nearest_neighbours(queries, None, deepest, chunk_bytes)[1].cpu()
    start = 0
    while start < len(order):
        rows = rows_in_chunk(min(most, max(int(relevant[order[start]]), *ks)), chunk_bytes)
        part = order[start : start + rows]
        depth = min(most, max(int(relevant[part[-1]]), *ks))
        part = part[: rows_in_chunk(depth, chunk_bytes)]
        if every is not None:
            found = every[part, :depth]
        else:
            here = part.to(queries.device)
            own = here if itself else None
            found = top_references(queries[here], references, depth, own, chunk_bytes)[1].cpu()
        matches = targets[found] == labels[part, None]  # (q, depth)
        scores[:, part] = _scores_of_matches(matches, relevant[part], ks)
        start += len(part)
    return dict(zip(names, scores, strict=True))


def bootstrap_interval(
    values: Tensor | NDArray[np.floating], seed: int, level: float = 0.95, resamples: int = 1000
) -> tuple[float, float]:
    """Confidence interval (low, high) of the mean of values (Q,), by the percentile bootstrap over them.

    NaN, a query that does not count, is left out. level: in (0, 1). ValueError for a bad level, or no value.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    numbers = np.asarray(values, dtype=np.float64).ravel()
    numbers = numbers[~np.isnan(numbers)]
    if not len(numbers):
        raise ValueError("there are no values to take the interval of")
    generator = np.random.default_rng(seed)
    means = [numbers[generator.integers(len(numbers), size=len(numbers))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _scores_of_matches(matches: Tensor, relevant: Tensor, ks: Sequence[int]) -> Tensor:
    """Precision@1, R-Precision, MAP@R and Recall@K, a row each, of matches (q, depth), R = relevant (q,)."""
    hits = matches.double()
    ranks = torch.arange(1, hits.shape[1] + 1, dtype=torch.float64)
    first = hits * (ranks <= relevant[:, None])  # (q, depth), the matches among the first R
    precision = first.cumsum(dim=1) / ranks
    return torch.stack(
        [
            hits[:, 0],
            first.sum(dim=1) / relevant,
            (precision * first).sum(dim=1) / relevant,
            *(hits[:, :k].amax(dim=1) for k in ks),
        ]
    )


def _occurrences(labels: Tensor, targets: Tensor) -> Tensor:
    """How many of targets (N,) equal each of labels (Q,)."""
    _, classes = np.unique(torch.cat([labels, targets]).numpy(), return_inverse=True)
    counts = np.bincount(classes[len(labels) :], minlength=len(classes))
    return torch.from_numpy(counts[classes[: len(labels)]])


def _checked_labels(labels: Labels, embeddings: Tensor, name: str) -> Tensor:
    """Labels (N,) int64 on the CPU. ValueError if they are not integers, one for each row."""
    try:
        tensor = as_tensor(labels).detach().cpu()
    except (TypeError, ValueError):  # texts, rows that are not equally long
        raise ValueError(
            f"labels of {name} must be integers, one for each of {len(embeddings)} rows"
        ) from None
    if tensor.shape != embeddings.shape[:1] or tensor.is_floating_point() or tensor.is_complex():
        raise ValueError(
            f"labels of {name} must be integers of shape ({len(embeddings)},), "
            f"got {tensor.dtype} {tuple(tensor.shape)}"
        )
    return tensor.long()
