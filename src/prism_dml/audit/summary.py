"""What the judgement on every label says about the whole data set: an `Audit`, from which the page is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.decomposition import PCA
from torch import Tensor

from prism_dml.retrieval.neighbours import nearest_neighbours, unit_rows

IntArray = NDArray[np.int64]

NEIGHBOURS = 3
"""Trusted samples of each of the two classes shown beside a suspect."""
MAP_SAMPLES = 6000
"""So many trusted samples, spread over the data, are the background of the map."""


@dataclass(frozen=True, eq=False)
class Audit:
    """The judgement on N labels and what follows from it."""

    issues: pd.DataFrame
    """(N) rows as `find_label_issues` returns them."""
    paths: list[str]
    """(N) identifier of each sample."""
    index: IntArray
    """(N,) number of each sample in the data that corrections are applied to."""
    fingerprint: str
    """Of that data: paths and given labels."""
    noise_rate: float
    """Estimated share of wrong labels, in [0, 1]."""
    noise_interval: tuple[float, float]
    """95 % interval of that estimate."""
    ambiguous_classes: list[tuple[str, str]]
    """Pairs of classes that are mixed as if they were one."""
    classes: pd.DataFrame
    """One row a class: name, samples, suspects, wrong_share (estimated), often_suggested ("" without suspects)."""
    confusion: pd.DataFrame
    """Suspects by given, suggested and count, most frequent first; those whose suggestion is another class."""
    reliability: pd.DataFrame | None
    """Bins of the score: mean label_score, share_right (measured), count; None: not known."""
    suspects: IntArray
    """(S,) samples shown for review, worst first."""
    given_neighbours: IntArray
    """(S, k) nearest trusted samples of the given class; -1 where there are fewer."""
    suggested_neighbours: IntArray
    """(S, k) nearest trusted samples of the suggested class; -1 where there are fewer."""
    map_samples: IntArray
    """(M,) the samples on the map."""
    map_points: NDArray[np.float32]
    """(M, 2) their places."""
    map_method: str
    """How these were computed, in a sentence."""

    @property
    def num_issues(self) -> int:
        """How many labels look wrong, those beyond the S that are shown included."""
        return int(self.issues["is_label_issue"].sum())


def make_audit(
    issues: pd.DataFrame,
    embeddings: Tensor | NDArray[np.floating[Any]],
    paths: list[str],
    fingerprint: str,
    index: ArrayLike | None = None,
    *,
    reliability: pd.DataFrame | None = None,
    max_suspects: int = 10_000,
) -> Audit:
    """Sum up the judgement on every label.

    Args:
        issues: N rows as `find_label_issues` returns them, attrs included, N >= 1.
        embeddings: (N, D).
        paths: N identifiers.
        fingerprint: of the data that corrections are applied to.
        index: (N,) the samples' numbers in it; None: 0 to N - 1.
        reliability: see `Audit`.
        max_suspects: so many samples are shown for review at most.

    Raises:
        ValueError: no samples, or lengths that differ.
    """
    rows = unit_rows(embeddings, "embeddings")
    if not len(issues) or not len(issues) == len(rows) == len(paths):
        raise ValueError(
            f"{len(issues)} judgements, {len(rows)} embeddings and {len(paths)} paths do not fit together"
        )
    flagged = np.flatnonzero(issues["is_label_issue"].to_numpy())
    order = np.argsort(issues["label_score"].to_numpy()[flagged], kind="stable")
    suspects = flagged[order][:max_suspects].astype(np.int64)
    given, suggested, _ = _class_numbers(issues)
    trusted = np.flatnonzero(~issues["is_label_issue"].to_numpy())
    samples, points, method = _map(rows, suspects, trusted)
    return Audit(
        issues,
        paths,
        np.arange(len(issues)) if index is None else np.asarray(index, dtype=np.int64),
        fingerprint,
        issues.attrs["noise_rate"],
        issues.attrs["noise_rate_interval"],
        [(str(one), str(other)) for one, other in issues.attrs["ambiguous_classes"]],
        _class_table(issues),
        _confusion(issues),
        reliability,
        suspects,
        trusted_neighbours(rows, given, trusted, suspects, given[suspects]),
        trusted_neighbours(rows, given, trusted, suspects, suggested[suspects]),
        samples,
        points,
        method,
    )


def trusted_neighbours(
    rows: Tensor,
    labels: IntArray,
    trusted: IntArray,
    suspects: IntArray,
    wanted: IntArray,
    k: int = NEIGHBOURS,
) -> IntArray:
    """The nearest trusted samples of one class for each suspect.

    Args:
        rows: (N, D) unit embeddings.
        labels: (N,) given classes, numbers from 0.
        trusted: samples that count as right.
        suspects: (S,) samples to find neighbours for; none of them trusted.
        wanted: (S,) the class that each one's neighbours are of.
        k: neighbours for each.

    Returns:
        (S, k) sample numbers, nearest first; -1 where the class has fewer trusted samples.
    """
    found = np.full((len(suspects), k), -1, dtype=np.int64)
    members = _by_class(trusted, labels[trusted])
    for number, places in _by_class(np.arange(len(suspects)), wanted).items():
        references = members.get(number, trusted[:0])
        if len(references):
            most = min(k, len(references))
            _, nearest = nearest_neighbours(rows[suspects[places]], rows[references], most)
            found[places, :most] = references[nearest.numpy()]
    return found


def _by_class(values: IntArray, numbers: IntArray) -> dict[int, IntArray]:
    """The values of each class number that occurs."""
    if not len(values):
        return {}
    order = np.argsort(numbers, kind="stable")
    present, starts = np.unique(numbers[order], return_index=True)
    return dict(zip(present.tolist(), np.split(values[order], starts[1:]), strict=True))


def _class_numbers(issues: pd.DataFrame) -> tuple[IntArray, IntArray, list[str]]:
    """(N,) numbers of the given and of the suggested classes, and their names."""
    both = pd.concat([issues["given_label"], issues["suggested_label"]]).astype(str)
    numbers, names = pd.factorize(both)
    return numbers[: len(issues)].astype(np.int64), numbers[len(issues) :].astype(np.int64), list(names)


def _class_table(issues: pd.DataFrame) -> pd.DataFrame:
    given = issues["given_label"].astype(str)
    table = pd.DataFrame(
        {
            "samples": issues.groupby(given).size(),
            "suspects": issues["is_label_issue"].groupby(given).sum().astype(int),
            "wrong_share": 1 - issues["label_score"].groupby(given).mean(),
        }
    )
    first = _confusion(issues).drop_duplicates("given").set_index("given")["suggested"]
    table["often_suggested"] = first.reindex(table.index).fillna("")
    ordered = table.rename_axis("name").reset_index()
    return ordered.sort_values(["wrong_share", "name"], ascending=[False, True], ignore_index=True)


def _confusion(issues: pd.DataFrame) -> pd.DataFrame:
    pairs = issues.loc[issues["is_label_issue"], ["given_label", "suggested_label"]].astype(str)
    pairs.columns = pd.Index(["given", "suggested"])
    pairs = pairs[pairs["given"] != pairs["suggested"]]
    counts = pairs.value_counts(sort=False).rename("count").reset_index()
    return counts.sort_values(
        ["count", "given", "suggested"], ascending=[False, True, True], ignore_index=True
    )


def _map(rows: Tensor, suspects: IntArray, trusted: IntArray) -> tuple[IntArray, NDArray[np.float32], str]:
    """The suspects and a share of the trusted samples in the plane."""
    step = max(1, -(-len(trusted) // MAP_SAMPLES))
    samples = np.concatenate([trusted[::step], suspects])
    vectors = rows[torch.from_numpy(samples)].numpy()
    if min(vectors.shape) < 2:
        return samples, np.zeros((len(samples), 2), np.float32), "Too few samples for a map."
    with np.errstate(invalid="ignore"):  # embeddings that are all the same have no variance to explain
        basis = PCA(2, random_state=0).fit(vectors)
    share = float(np.nan_to_num(basis.explained_variance_ratio_).sum())
    method = f"First two principal components of the embeddings: they hold {share:.0%} of the variance."
    return samples, basis.transform(vectors).astype(np.float32), method
