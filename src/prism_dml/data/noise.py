"""Wrong labels made on purpose, to know what is wrong: the noise models of the comparison."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from prism_dml.data.cache import load_images
from prism_dml.data.table import ImageTable, IntArray

NoiseKind = Literal["symmetric", "pair", "class-conditional", "small-cluster", "open-set"]
FloatArray = NDArray[np.floating]

FEATURE_PIXELS = 32
"""Side of the images whose pixels are the default features of small-cluster noise."""
FEATURE_COMPONENTS = 64
"""Principal components of those pixels that are kept."""
PCA_SAMPLES = 8192
"""So many images, spread over the table, determine the components."""
SPREAD_CENTRES = 4096
"""Images of one class up to which k-means starts from spread centres (k-means++), whose cost is quadratic."""


def corrupt_labels(
    labels: ArrayLike,
    num_classes: int,
    kind: NoiseKind,
    rate: float | None,
    seed: int,
    features: ArrayLike | None = None,
    confusion: ArrayLike | None = None,
) -> IntArray:
    """Labels of which some are wrong, the same for the same seed.

    Args:
        labels: (N,) right labels in [0, num_classes).
        num_classes: number of classes C.
        kind: "symmetric": exactly round(rate * N) samples, each given another of the C classes, uniformly.
            "pair": exactly round(rate * N) samples, class k to class k + 1, the last to the first.
            "class-conditional": each sample's label is drawn from its class's row of `confusion`.
            "small-cluster": see `small_cluster`; classes keep their numbers.
            "open-set": round(rate * C) of the classes that occur are dissolved, as for "small-cluster", but each sample
            by itself is given to a random surviving class.
        rate: share in [0, 1] of wrong labels, of dissolved classes for "small-cluster" and "open-set". For
            "class-conditional" the expected share: the matrix's wrong part is scaled to it; None takes the
            matrix as it is.
        seed: a whole number, 0 or more.
        features: (N, F), for "small-cluster" only.
        confusion: (C, C), rows sum to 1, for "class-conditional" only.

    Returns:
        (N,) labels in [0, num_classes).

    Raises:
        ValueError: labels out of range, unknown kind, bad rate, missing or unusable features or confusion.

    Source: Liu et al. 2021 (arXiv 2103.16047), section 4.1.
    """
    right = np.asarray(labels, dtype=np.int64)
    if right.size and not (right.min() >= 0 and right.max() < num_classes):
        raise ValueError(f"labels must be in [0, {num_classes}), found {right.min()} to {right.max()}")
    _check(kind, rate)
    if kind == "class-conditional":
        if confusion is None:
            raise ValueError("class-conditional noise needs a confusion matrix")
        rows = _confusion_rows(confusion, num_classes)
        return _draw(right, rows if rate is None else _scale(rows, right, rate), _generator(seed))
    assert rate is not None
    if kind == "open-set":
        clustered, survivors = _dissolve(
            right, kind, rate, _generator(seed), lambda rows: np.arange(len(rows))
        )
        return survivors[clustered]
    if kind == "small-cluster":
        if features is None:
            raise ValueError("small-cluster noise needs features")
        clustered, survivors = small_cluster(right, features, rate, seed)
        return survivors[clustered]
    return _shift(right, num_classes, rate, _generator(seed), to_any=kind == "symmetric")


def small_cluster(
    labels: ArrayLike, features: ArrayLike, rate: float, seed: int
) -> tuple[IntArray, IntArray]:
    """Dissolve round(rate * C) of the C classes that occur: open-set noise, whose true class is gone.

    Each dissolved class's n samples are cut in about n / 2 clusters of their features, and each cluster is
    given whole to a random surviving class. The clusters are scikit-learn's k-means, from k-means++ centres,
    above 4,096 samples of a class from random ones (tighter, and quicker, than mini-batch k-means).

    Args:
        labels: (N,) right labels.
        features: (N, F) finite, compared by Euclidean distance.
        rate: share in [0, 1) of the classes.
        seed: a whole number, 0 or more.

    Returns:
        labels (N,) in [0, S), renumbered, and the (S,) old numbers of the surviving classes.

    Raises:
        ValueError: a bad rate, no class left, features of another length or not finite.

    Source: Liu et al. 2021 (arXiv 2103.16047), section 4.1.
    """
    right = np.asarray(labels, dtype=np.int64)
    points = np.asarray(features)
    if points.ndim != 2 or len(points) != len(right):
        raise ValueError(f"features must be ({len(right)}, F), one row a label, not {points.shape}")
    if not np.isfinite(points).all():
        raise ValueError("features must be finite")
    _check("small-cluster", rate)
    generator = _generator(seed)
    return _dissolve(right, "small-cluster", rate, generator, lambda rows: _clusters(points[rows], generator))


def corrupt_table(
    table: ImageTable,
    kind: NoiseKind,
    rate: float | None,
    seed: int,
    features: ArrayLike | None = None,
    confusion: ArrayLike | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImageTable:
    """A table with wrong labels, the right ones in `clean_labels`; only in split "train" if there are splits.

    `classes` stays whole, so that the names of dissolved classes are not lost: `split` or `compact`
    afterwards give training its classes, with -1 for the truth of samples whose class is gone.

    Args:
        table: right labels.
        kind: see `corrupt_labels`; C are the classes that occur in the samples that are corrupted.
        rate: see `corrupt_labels`.
        seed: see `corrupt_labels`.
        features: (N, F), a row for each sample of the table; None: `pixel_features` where they are needed.
        confusion: see `corrupt_labels`.
        progress: called with (images done, images) while features are computed.

    Raises:
        ValueError: as `corrupt_labels`; no split "train"; labels of which some are known to be wrong already.
    """
    _check(kind, rate)
    rows = np.arange(len(table)) if table.splits is None else np.flatnonzero(table.splits == "train")
    if not len(rows):
        raise ValueError("nothing to corrupt: the data has splits, but none is called 'train'")
    train = table.select(rows)
    if train.is_noisy is not None and train.is_noisy.any():
        raise ValueError(
            f"{train.is_noisy.mean():.1%} of the labels are wrong already; start from right ones"
        )
    if features is not None and len(np.asarray(features)) != len(table):
        raise ValueError(f"features must have {len(table)} rows, one for each image of the data")
    if kind == "small-cluster":
        features = pixel_features(train, progress) if features is None else np.asarray(features)[rows]
    classes, labels = np.unique(train.labels, return_inverse=True)
    given = table.labels.copy()
    given[rows] = classes[corrupt_labels(labels, len(classes), kind, rate, seed, features, confusion)]
    truth = table.labels if table.clean_labels is None else table.clean_labels
    return replace(table, labels=given, clean_labels=truth.copy())


def pixel_features(table: ImageTable, progress: Callable[[int, int], None] | None = None) -> FloatArray:
    """(N, F <= 64) principal components of unit-length pixels at 32 x 32; zeros where an image is unreadable.

    Raises:
        ValueError: more than 1 % of the images are unreadable.
    """
    images, readable = load_images(table, FEATURE_PIXELS, progress=progress)
    pixels = images.flatten(1).numpy()
    sample = _unit(pixels[:: math.ceil(len(pixels) / PCA_SAMPLES)])
    count = min(FEATURE_COMPONENTS, *sample.shape)
    with threadpool_limits(1):  # see `_clusters`
        components = PCA(count, svd_solver="randomized", random_state=0).fit(sample)
        features = np.zeros((len(table), components.n_components_))
        for start in range(0, len(pixels), PCA_SAMPLES):  # as floats, all pixels take four times the memory
            part = slice(start, start + PCA_SAMPLES)
            features[readable[part]] = components.transform(_unit(pixels[part]))
    return features


def _shift(
    labels: IntArray, num_classes: int, rate: float, generator: np.random.Generator, to_any: bool
) -> IntArray:
    """Move exactly round(rate * N) samples to any other class, or to the next."""
    count = round(rate * len(labels))
    if count and num_classes < 2:
        raise ValueError("wrong labels need at least 2 classes")
    chosen = generator.choice(len(labels), size=count, replace=False)
    step = generator.integers(1, num_classes, size=count) if to_any else 1
    noisy = labels.copy()
    noisy[chosen] = (labels[chosen] + step) % num_classes
    return noisy


def _draw(labels: IntArray, confusion: FloatArray, generator: np.random.Generator) -> IntArray:
    """A label for each sample, drawn from the row of its class."""
    noisy = labels.copy()
    for k in np.unique(labels):
        members = np.flatnonzero(labels == k)
        noisy[members] = generator.choice(len(confusion), size=len(members), p=confusion[k])
    return noisy


def _confusion_rows(confusion: ArrayLike, num_classes: int) -> FloatArray:
    rows = np.asarray(confusion, dtype=np.float64)
    if rows.shape != (num_classes, num_classes):
        raise ValueError(f"the confusion matrix must be {num_classes} x {num_classes}, not {rows.shape}")
    if not (rows >= 0).all() or not np.allclose(rows.sum(axis=1), 1, atol=1e-6):
        raise ValueError("each row of the confusion matrix must be probabilities that sum to 1")
    return np.asarray(rows / rows.sum(axis=1, keepdims=True))


def _scale(confusion: FloatArray, labels: IntArray, rate: float) -> FloatArray:
    """The matrix with its off-diagonal part scaled so that a share `rate` of the labels becomes wrong."""
    wrong = 1 - np.diagonal(confusion)  # (C,) share of each class that becomes wrong
    expected = wrong[labels].mean() if len(labels) else 0.0
    if rate > 0 and expected == 0:
        raise ValueError("the confusion matrix confuses none of the classes: it cannot be scaled to a rate")
    factor = rate / expected if rate > 0 else 0.0
    if (factor * wrong).max() > 1 + 1e-9:
        raise ValueError(f"the confusion matrix reaches a rate of {expected / wrong.max():.3g} at most")
    scaled = factor * confusion
    np.fill_diagonal(scaled, np.maximum(0, 1 - factor * wrong))
    return np.asarray(scaled / scaled.sum(axis=1, keepdims=True))


def _dissolve(
    labels: IntArray,
    kind: NoiseKind,
    rate: float,
    generator: np.random.Generator,
    groups: Callable[[IntArray], IntArray],
) -> tuple[IntArray, IntArray]:
    """As `small_cluster`; `groups` numbers those of a class's samples (n,) that stay together, from 0 on, (n,)."""
    classes = np.unique(labels)
    dissolved = generator.permutation(len(classes))[: round(rate * len(classes))]
    survivors = np.delete(classes, dissolved)
    if len(classes) and not len(survivors):
        raise ValueError(f"{kind} noise at rate {rate} dissolves all {len(classes)} classes")
    noisy = labels.copy()
    samples = np.split(np.argsort(labels, kind="stable"), np.searchsorted(np.sort(labels), classes[1:]))
    for k in dissolved:
        together = groups(samples[k])
        noisy[samples[k]] = generator.choice(survivors, size=together.max() + 1)[together]
    return np.searchsorted(survivors, noisy).astype(np.int64), survivors


def _clusters(points: FloatArray, generator: np.random.Generator) -> IntArray:
    """(n,) cluster of each of n points, about n / 2 clusters."""
    count = (len(points) + 1) // 2
    start = "k-means++" if len(points) <= SPREAD_CENTRES else "random"
    model = KMeans(count, init=start, n_init=1, random_state=int(generator.integers(2**31)))
    # Several threads add up in another order, which decides where a point is as near to two centres.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # duplicates leave fewer clusters than asked for
        return np.asarray(model.fit_predict(points), dtype=np.int64)


def _unit(pixels: NDArray[np.uint8]) -> FloatArray:
    # In float32 clusters would depend on the processor.
    values = pixels.astype(np.float64)
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1))


def _check(kind: str, rate: float | None) -> None:
    if kind not in get_args(NoiseKind):
        raise ValueError(f"unknown kind of noise '{kind}'; choose from {', '.join(get_args(NoiseKind))}")
    if rate is None and kind != "class-conditional":
        raise ValueError(f"{kind} noise needs a rate")
    if rate is not None and not 0 <= rate <= 1:
        raise ValueError(f"the noise rate must be in [0, 1], not {rate}")


def _generator(seed: int) -> np.random.Generator:
    if seed < 0:
        raise ValueError(f"the seed must be 0 or more, not {seed}")
    return np.random.default_rng(seed)
