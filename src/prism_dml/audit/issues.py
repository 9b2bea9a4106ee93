"""Which labels of a data set are wrong, from anybody's embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from prism_dml.audit.kinds import KINDS, settle
from prism_dml.data import SCORES
from prism_dml.retrieval import neighbour_graph
from prism_dml.retrieval.neighbours import unit_rows
from prism_dml.selection.bursts import judge_by_bursts
from prism_dml.selection.label_judgement import LabelJudgement

NEIGHBOURS = 64
"""Nearest neighbours that vote on a sample."""


@torch.no_grad()
def find_label_issues(
    embeddings: Tensor | NDArray[np.floating],
    labels: Tensor | NDArray[Any] | Sequence[Any],
    scores: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Say of each label of a data set whether it is wrong, and what it should be. No noise rate has to be given.

    Args:
        embeddings: (N, D) of any model and modality, numpy or torch, on any device; brought to unit length. A zero
            row is an unknown sample, whose label is no issue.
        labels: (N,) integers or strings.
        scores: N rows of label_score, suggested_label (a label, or its text) and suggested_score as training has found
            them, the network's own opinion included (see `read_embeddings`), which count in place of those by the
            embeddings; NaN: those.

    Returns:
        One row a sample, in order:
        is_label_issue, whether the label is at least as likely wrong as right;
        label_score in [0, 1], the probability that it is right: of samples with score s, about a share s is;
        given_label; suggested_label, the most probable one; the given one, where the sample is rather of no class;
        suggested_score in [0, 1], its probability;
        issue, "" or one of `KINDS`: "wrong label"; "outlier", wrong and of no class: far from every one, or one of a
        kind that is none; "conflicting duplicate", near-identical to a sample labelled otherwise and not better
        supported; "ambiguous classes", of one of two classes that are mixed as if they were one, here also where the
        label is no issue.
        attrs: noise_rate, the estimated share of wrong labels; noise_rate_interval, (low, high), 95 %, for errors of
        chance, and as much wider on both sides as the rate by the embeddings differs, but not for what both get wrong;
        ambiguous_classes, a list of pairs of labels.

    Raises:
        ValueError: no samples, wrong shapes, values that are not finite, missing labels, or scores that do not fit.

    Source: PRISM (Liu et al., CVPR 2021), sec. 3.2, for trust by leave-one-out similarity; see `judge_by_bursts`.
    """
    rows = unit_rows(embeddings, "embeddings")
    given, codes = _encode(labels, len(rows))
    if scores is not None:
        _check(scores, len(rows))
    known = rows.abs().amax(dim=1) > 0 if rows.numel() else rows.new_zeros(len(rows), dtype=torch.bool)
    found = known.nonzero().squeeze(1)
    rows = rows if len(found) == len(rows) else rows[found]
    classes, inside = torch.unique(codes.to(rows.device)[found], return_inverse=True)
    if len(classes) < 2:
        return _nothing_wrong(given)

    near, neighbours = _nearest(rows)
    names = _names(given, codes)
    by_embeddings = judge_by_bursts(rows, inside, near, neighbours, _nearest)
    judgement = by_embeddings
    if scores is not None:
        heard = scores.iloc[found.cpu().numpy()]
        place = _numbers(heard["suggested_label"], names[classes.cpu().numpy()])
        judgement = _hear(by_embeddings, inside, heard, torch.from_numpy(place).to(inside))
    verdict = settle(judgement, inside, near, neighbours)

    def column(values: Tensor, unknown: float) -> NDArray[Any]:
        """Values of the known samples in their places among all."""
        full = values.new_full((len(given),), unknown)
        return full.index_copy_(0, found, values).cpu().numpy()

    frame = pd.DataFrame(
        {
            "is_label_issue": column(verdict.suspicious, False),
            "label_score": column(verdict.score, 1 - judgement.noise_rate),
            "given_label": given,
            "suggested_label": names[
                codes.to(rows.device).index_copy(0, found, classes[verdict.suggested]).cpu().numpy()
            ],
            "suggested_score": column(verdict.suggested_score, 1 - judgement.noise_rate),
            "issue": np.array(["", *KINDS], dtype=object)[column(verdict.kind, 0)],
        }
    )
    margin = 1.96 * judgement.rate_error + abs(judgement.noise_rate - by_embeddings.noise_rate)
    frame.attrs = {
        "noise_rate": judgement.noise_rate,
        "noise_rate_interval": (
            max(0.0, judgement.noise_rate - margin),
            min(1.0, judgement.noise_rate + margin),
        ),
        "ambiguous_classes": [tuple(pair) for pair in names[classes[verdict.pairs].cpu().numpy()].tolist()],
    }
    return frame


def _nearest(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines to the nearest neighbours of unit vectors (N, D), and their numbers."""
    return neighbour_graph(rows, min(NEIGHBOURS, len(rows) - 1))


def _numbers(suggested: pd.Series, names: NDArray[Any]) -> NDArray[np.intp]:
    """(N,) which of the labels each is, or is the text of; -1: none."""
    place: NDArray[np.intp] = pd.Index(names).get_indexer(suggested)
    texts: dict[str, int] = {}
    for number, name in enumerate(names):
        texts.setdefault(str(name), number)  # 1 and "1" may both be labels
    by_text = suggested.astype(object).map(lambda label: texts.get(str(label), -1)).to_numpy(np.intp)
    return np.where(place < 0, by_text, place)


def _check(scores: pd.DataFrame, count: int) -> None:
    if len(scores) != count or not set(SCORES) <= set(scores):
        raise ValueError(f"scores must have {count} rows of {', '.join(SCORES)}")
    for name in (SCORES[0], SCORES[2]):
        values = scores[name].to_numpy(np.float64)
        if not ((values >= 0) & (values <= 1) | np.isnan(values)).all():
            raise ValueError(f"{name} must be in [0, 1], or NaN where nobody judged")


def _hear(
    judgement: LabelJudgement, labels: Tensor, scores: pd.DataFrame, suggested: Tensor
) -> LabelJudgement:
    """The judgement on N samples with scores in place of its own.

    Args:
        judgement: of N samples.
        labels: (N,) given labels.
        scores: N rows of `SCORES`; NaN: as judged.
        suggested: (N,) numbers of the suggested labels, -1 where there is none, or of none of the classes.
    """
    clean, believed = (
        torch.from_numpy(scores[name].to_numpy(np.float64, copy=True)).to(judgement.chances)
        for name in (SCORES[0], SCORES[2])
    )
    known = clean.isfinite()
    clean = torch.where(known, clean, judgement.clean_probability)
    told = known & believed.isfinite() & (suggested >= 0)
    suggested = torch.where(told, suggested, judgement.suggested)
    believed = torch.where(told, believed, torch.minimum(judgement.suggested_probability, 1 - clean))
    share = (1 - clean) / (1 - judgement.clean_probability).clamp(min=1e-9)
    return replace(
        judgement,
        suggested=suggested,
        suggested_probability=torch.where(suggested == labels, clean, believed),
        chances=torch.cat([clean[:, None], judgement.chances[:, 1:] * share[:, None]], dim=1),
        nowhere=judgement.nowhere * share,
        other_kind=judgement.other_kind * share,
    )


def _encode(labels: Tensor | NDArray[Any] | Sequence[Any], count: int) -> tuple[NDArray[Any], Tensor]:
    """Labels (N,) as a numpy array, and their numbers (N,). ValueError if they are not one for each sample."""
    given = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if given.dtype.kind in "US" and not isinstance(labels, np.ndarray):  # 1 and NaN would be "1" and "nan"
        given = np.asarray(labels, dtype=object)
    if given.ndim != 1 or len(given) != count:
        raise ValueError(f"labels must have shape ({count},), one for each embedding, got {given.shape}")
    if count == 0:
        raise ValueError("there are no samples")
    codes, _ = pd.factorize(given)
    missing = (codes < 0).nonzero()[0]
    if len(missing):
        count_text = "1 label is" if len(missing) == 1 else f"{len(missing)} labels are"
        raise ValueError(f"{count_text} missing, the first at row {missing[0]}")
    return given, torch.from_numpy(codes.astype(np.int64))


def _names(given: NDArray[Any], codes: Tensor) -> NDArray[Any]:
    """The label of each number."""
    names = np.empty(int(codes.max()) + 1, dtype=given.dtype)
    names[codes.numpy()] = given
    return names


def _nothing_wrong(given: NDArray[Any]) -> pd.DataFrame:
    """The answer where there are no two classes to choose from."""
    frame = pd.DataFrame(
        {
            "is_label_issue": np.zeros(len(given), bool),
            "label_score": np.ones(len(given)),
            "given_label": given,
            "suggested_label": given,
            "suggested_score": np.ones(len(given)),
            "issue": np.full(len(given), "", dtype=object),
        }
    )
    frame.attrs = {"noise_rate": 0.0, "noise_rate_interval": (0.0, 1.0), "ambiguous_classes": []}
    return frame
