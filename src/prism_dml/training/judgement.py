"""A finished run's judgement on each of its training samples."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor

from prism_dml.data import ImageTable
from prism_dml.methods.base import Method
from prism_dml.selection import CalibratedSelection


def judge_samples(method: Method, seen: Tensor, table: ImageTable) -> tuple[pd.DataFrame, float]:
    """Judge every training sample by what the method's observer sees without augmentation.

    Args:
        method: a method that selects, trained.
        seen: (N, D) or more, of the whole training set; zeros for an image that could not be read.
        table: the N samples.

    Returns:
        One row a sample that could be read, in order, under its number: path, label, clean_label (where known),
        clean_probability in [0, 1], margin, keep, suggested_label, and suggested_probability, if the method's
        probabilities are calibrated; and the estimated share of wrong labels.
    """
    # What could not be read looks like nothing, so it would take the places of suspects where their number is fixed.
    index = (seen != 0).any(dim=1).nonzero().squeeze(1)
    if len(index) < len(seen):  # else a copy for nothing
        seen = seen[index]
    rows = index.cpu().numpy()
    labels = torch.from_numpy(table.labels[rows]).to(seen.device)
    selection, rate = method.judge(seen, labels, index)
    classes = pd.Series(table.classes)
    paths = [table.paths[i] for i in rows]
    frame = pd.DataFrame({"path": paths, "label": classes[table.labels[rows]].to_numpy()}, index=rows)
    if table.clean_labels is not None:
        # A true class that was set aside for validation, or is in no class, has no name here.
        frame["clean_label"] = classes.reindex(table.clean_labels[rows]).to_numpy()
    frame["clean_probability"] = selection.clean_probability.cpu().numpy()
    frame["margin"] = selection.margin.cpu().numpy()
    frame["keep"] = selection.keep.cpu().numpy()
    frame["suggested_label"] = classes[selection.suggested_label.cpu().numpy()].to_numpy()
    if isinstance(selection, CalibratedSelection):
        frame["suggested_probability"] = selection.suggested_probability.cpu().numpy()
    return frame, rate


def rate_judgement(judged: pd.DataFrame, clean: NDArray[np.bool_]) -> dict[str, float | None]:
    """How right a judgement is: purity of what is kept, recall of the right labels, AUROC; each in [0, 1].

    Args:
        judged: see `judge_samples`.
        clean: (N,) whether each label is right, of all samples.

    Returns:
        The three by name; None where there is nothing to measure.
    """
    clean = clean[judged.index]
    keep, both = judged["keep"].to_numpy(), clean.any() and not clean.all()
    return {
        "purity": float(clean[keep].mean()) if keep.any() else None,
        "clean_recall": float(keep[clean].mean()) if clean.any() else None,
        "auroc": float(roc_auc_score(clean, judged["clean_probability"])) if both else None,
    }
