"""Whether a label's score is the probability that the label is right, where the truth is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

BINS = 15


def measure_reliability(
    scores: NDArray[np.floating[Any]], right: NDArray[np.bool_], bins: int = BINS
) -> pd.DataFrame:
    """Share of right labels by score, in bins of equal width.

    Args:
        scores: (N,) in [0, 1], the probability that a label is right.
        right: (N,) whether it is.
        bins: number of bins; empty ones are left out.

    Returns:
        One row a bin: label_score (mean), share_right, count.
    """
    place = np.minimum((np.asarray(scores, np.float64) * bins).astype(np.int64), bins - 1)
    frame = pd.DataFrame({"label_score": scores, "share_right": right.astype(np.float64), "count": 1})
    table = frame.groupby(place).agg({"label_score": "mean", "share_right": "mean", "count": "sum"})
    return table.reset_index(drop=True)


def calibration_error(reliability: pd.DataFrame) -> float:
    """Expected calibration error of `measure_reliability`'s bins, in [0, 1]; 0 without samples.

    Source: Guo et al., ICML 2017, eq. 3.
    """
    weight = reliability["count"] / max(reliability["count"].sum(), 1)
    return float((weight * (reliability["label_score"] - reliability["share_right"]).abs()).sum())
