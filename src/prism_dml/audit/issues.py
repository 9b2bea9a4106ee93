"""Which labels look wrong: each sample against the centres of all classes, itself left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn.functional import normalize

CHUNK = 4096
"""Samples compared with all classes at once."""
SHARPNESS = 10.0
"""Of the curve from margin, a difference of cosines, to score."""


def find_label_issues(embeddings: Tensor | NDArray[np.floating[Any]], labels: ArrayLike) -> pd.DataFrame:
    """Judge every label by its sample's similarity to the given class and to the others.

    Args:
        embeddings: (N, D), any float type.
        labels: (N,) classes, names or whole numbers.

    Returns:
        One row a sample, in order: is_label_issue (bool), label_score in [0, 1] (low = suspicious), given_label,
        suggested_label, suggested_score in [0, 1], issue ("" or "wrong label").

    Raises:
        ValueError: shapes that do not fit, no samples, or values that are not finite.
    """
    rows = torch.as_tensor(embeddings).detach().float().cpu()
    given, classes = pd.factorize(np.asarray(labels), sort=True)
    if rows.ndim != 2 or len(rows) != len(given):
        raise ValueError(f"{len(given)} labels do not go with embeddings of shape {tuple(rows.shape)}")
    if not len(rows) or not rows.isfinite().all():
        raise ValueError("embeddings are needed, and finite ones")
    rows, numbers = normalize(rows, dim=1), torch.from_numpy(given.astype(np.int64))
    sums = torch.zeros(len(classes), rows.shape[1]).index_add_(0, numbers, rows)
    counts = torch.bincount(numbers, minlength=len(classes)).float()
    parts = [
        _judge(rows[i : i + CHUNK], numbers[i : i + CHUNK], sums, counts) for i in range(0, len(rows), CHUNK)
    ]
    margin, suggested = (torch.cat(columns).numpy() for columns in zip(*parts, strict=True))
    score = 1 / (1 + np.exp(-SHARPNESS * margin))
    is_issue = margin < 0
    return pd.DataFrame(
        {
            "is_label_issue": is_issue,
            "label_score": score,
            "given_label": classes[given],
            "suggested_label": classes[suggested],
            "suggested_score": np.maximum(score, 1 - score),
            "issue": np.where(is_issue, "wrong label", ""),
        }
    )


def _judge(rows: Tensor, given: Tensor, sums: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Margin of the given class over the best other (0 without another sample of it), and the best class."""
    scores = normalize(sums, dim=1) @ rows.T  # (C, B)
    column = given[None]
    own = (normalize(sums[given] - rows, dim=1) * rows).sum(dim=1)
    scores = scores.scatter(0, column, own[None])
    best_other = scores.scatter(0, column, -1.0).amax(dim=0)
    comparable = (counts[given] > 1) & (len(counts) > 1)
    margin = torch.where(comparable, own - best_other, 0.0)
    return margin, torch.where(comparable, scores.argmax(dim=0), given)
