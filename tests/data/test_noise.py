import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from threadpoolctl import threadpool_limits

import prism_dml.data.noise as noise
from prism_dml.data.noise import corrupt_labels, corrupt_table, pixel_features, small_cluster
from prism_dml.data.readers import read_table
from prism_dml.data.table import BytesImages, ImageTable

DATA = os.environ.get("PRISM_DATA")
rates = st.floats(0, 1)
seeds = st.integers(0, 2**32)


@st.composite
def labelled(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    num_classes = draw(st.integers(2, 7))
    labels = draw(st.lists(st.integers(0, num_classes - 1), max_size=60))
    return np.array(labels, dtype=np.int64), num_classes


@given(labelled(), rates, seeds, st.sampled_from(["symmetric", "pair"]))
def test_exactly_the_rate_is_wrong(
    data: tuple[np.ndarray, int], rate: float, seed: int, kind: noise.NoiseKind
) -> None:
    labels, num_classes = data
    before = labels.copy()
    wrong = corrupt_labels(labels, num_classes, kind, rate, seed)
    assert (labels == before).all()
    assert wrong.dtype == np.int64 and ((wrong >= 0) & (wrong < num_classes)).all()
    moved = wrong != labels
    assert moved.sum() == round(rate * len(labels))
    if kind == "pair":
        assert (wrong[moved] == (labels[moved] + 1) % num_classes).all()
    assert (wrong == corrupt_labels(labels, num_classes, kind, rate, seed)).all()


def test_symmetric_noise_is_uniform_over_samples_and_other_classes() -> None:
    labels = np.repeat(np.arange(4), 30_000)
    wrong = corrupt_labels(labels, 4, "symmetric", 0.6, seed=1)
    counts = np.zeros((4, 4))
    np.add.at(counts, (labels, wrong), 1)
    expected = np.where(np.eye(4), 0.4, 0.2)
    np.testing.assert_allclose(counts / 30_000, expected, atol=0.012)  # four standard deviations


def test_seeds_differ() -> None:
    labels = np.arange(100) % 5
    first, second = (corrupt_labels(labels, 5, "symmetric", 0.5, seed) for seed in (0, 1))
    assert (first != second).any()


def test_class_conditional_follows_the_matrix() -> None:
    confusion = np.array([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0], [0.25, 0.25, 0.5]])
    labels = np.repeat(np.arange(3), 40_000)
    for rate, factor in ((None, 1.0), (0.8 / 3 * 1.5, 1.5), (0.0, 0.0)):
        wrong = corrupt_labels(labels, 3, "class-conditional", rate, 0, confusion=confusion)
        counts = np.zeros((3, 3))
        np.add.at(counts, (labels, wrong), 1)
        expected = np.eye(3) + factor * (confusion - np.eye(3))
        np.testing.assert_allclose(counts / 40_000, expected, atol=0.011)
        assert (counts[expected == 0] == 0).all()


def blobs(num_classes: int, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Each class's images come in pairs of near duplicates, far from each other."""
    centres = np.random.default_rng(0).normal(size=(num_classes * pairs, 5)) * 100
    features = (
        np.repeat(centres, 2, axis=0)
        + np.random.default_rng(1).normal(size=(num_classes * pairs * 2, 5)) * 0.01
    )
    return np.repeat(np.arange(num_classes), 2 * pairs), features


@settings(deadline=None, max_examples=40)
@given(labelled(), st.floats(0, 0.8), seeds)
def test_small_cluster_properties(data: tuple[np.ndarray, int], rate: float, seed: int) -> None:
    labels, _ = data
    features = np.random.default_rng(seed).normal(size=(len(labels), 3))
    classes = np.unique(labels)
    dissolved_count = round(rate * len(classes))
    if dissolved_count == len(classes) > 0:
        with pytest.raises(ValueError, match="dissolves all"):
            small_cluster(labels, features, rate, seed)
        return
    noisy, survivors = small_cluster(labels, features, rate, seed)
    assert len(survivors) == len(classes) - dissolved_count
    assert np.isin(survivors, classes).all()
    surviving = np.isin(labels, survivors)
    assert (survivors[noisy[surviving]] == labels[surviving]).all()
    assert ((noisy >= 0) & (noisy < len(survivors))).all()
    again, _ = small_cluster(labels, features, rate, seed)
    assert (noisy == again).all()
    numbered = corrupt_labels(labels, 7, "small-cluster", rate, seed, features=features)
    assert (numbered == survivors[noisy]).all()


@pytest.mark.parametrize(("spread_centres", "share"), [(4096, 0.98), (0, 0.75)])
def test_small_clusters_go_whole_to_random_survivors(
    spread_centres: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noise, "SPREAD_CENTRES", spread_centres)
    labels, features = blobs(num_classes=8, pairs=40)
    shuffle = np.random.default_rng(2).permutation(len(labels))
    noisy, survivors = small_cluster(labels[shuffle], features[shuffle], 0.5, seed=3)
    unshuffled = noisy[np.argsort(shuffle)]
    dissolved = ~np.isin(labels, survivors)
    assert dissolved.sum() == 4 * 80
    pairs = unshuffled[dissolved].reshape(-1, 2)
    assert (pairs[:, 0] == pairs[:, 1]).mean() > share  # chance is 1/4
    for k in np.setdiff1d(np.arange(8), survivors):
        assert len(np.unique(unshuffled[labels == k])) == len(survivors)  # not all of a class to one survivor


def test_open_set_noise_gives_each_image_of_a_dissolved_class_to_any_other() -> None:
    labels = np.repeat(np.arange(10), 300)
    noisy = corrupt_labels(labels, 10, "open-set", 0.5, seed=0)
    survivors = np.unique(noisy)
    assert len(survivors) == 5 and (noisy == corrupt_labels(labels, 10, "open-set", 0.5, seed=0)).all()
    assert (noisy[np.isin(labels, survivors)] == labels[np.isin(labels, survivors)]).all()
    for k in np.setdiff1d(np.arange(10), survivors):
        shares = np.bincount(noisy[labels == k], minlength=10)[survivors] / 300
        assert np.abs(shares - 1 / 5).max() < 0.1
        assert (
            noisy[labels == k][:-1] == noisy[labels == k][1:]
        ).mean() < 0.35  # one by one, not in clusters
    with pytest.raises(ValueError, match="open-set noise at rate 1.0 dissolves all 10 classes"):
        corrupt_labels(labels, 10, "open-set", 1.0, seed=0)


def test_small_cluster_of_duplicates_and_singletons() -> None:
    labels = np.array([0] * 6 + [1] * 6 + [2] + [3])
    noisy, survivors = small_cluster(labels, np.zeros((14, 2)), 0.75, seed=0)
    assert len(survivors) == 1 and (noisy == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": -0.1}, r"rate must be in \[0, 1\], not -0.1"),
        ({"rate": 1.1}, r"rate must be in \[0, 1\]"),
        ({"rate": float("nan")}, r"rate must be in \[0, 1\]"),
        ({"rate": None}, "symmetric noise needs a rate"),
        (
            {"kind": "sym"},
            "unknown kind of noise 'sym'; choose from symmetric, pair, class-conditional, small-cluster, open-set",
        ),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"num_classes": 2}, r"labels must be in \[0, 2\), found 0 to 2"),
        ({"labels": [-1, 0]}, r"labels must be in \[0, 3\), found -1 to 0"),
        ({"labels": [0, 0], "num_classes": 1}, "need at least 2 classes"),
        ({"kind": "small-cluster"}, "needs features"),
        ({"kind": "small-cluster", "features": np.zeros((2, 2))}, r"features must be \(3, F\)"),
        ({"kind": "small-cluster", "features": np.full((3, 2), np.nan)}, "features must be finite"),
        ({"kind": "small-cluster", "rate": 1.0, "features": np.zeros((3, 2))}, "dissolves all 3 classes"),
        ({"kind": "class-conditional"}, "needs a confusion matrix"),
        ({"kind": "class-conditional", "confusion": np.eye(2)}, "must be 3 x 3"),
        ({"kind": "class-conditional", "confusion": np.ones((3, 3))}, "sum to 1"),
        ({"kind": "class-conditional", "confusion": np.full((3, 3), np.nan)}, "sum to 1"),
        ({"kind": "class-conditional", "confusion": np.eye(3)}, "confuses none of the classes"),
        (
            {"kind": "class-conditional", "confusion": [[0.5, 0.5, 0], [0, 1, 0], [0, 0, 1]]},
            "reaches a rate of 0.333 at most",
        ),
    ],
)
def test_bad_requests(options: dict[str, object], message: str) -> None:
    request: dict[str, object] = {
        "labels": [0, 1, 2],
        "num_classes": 3,
        "kind": "symmetric",
        "rate": 0.5,
        "seed": 0,
    }
    with pytest.raises(ValueError, match=message):
        corrupt_labels(**{**request, **options})  # type: ignore[arg-type]


def encoded(shade: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(shade).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def drawn_table(splits: bool = True) -> ImageTable:
    labels = ["z", "a", "b", "c"] * 20
    return ImageTable.from_names(
        BytesImages([encoded(i) for i in range(80)]),
        [str(i) for i in range(80)],
        labels,
        splits=["test" if name == "z" else "train" for name in labels] if splits else None,
    )


@pytest.mark.parametrize("kind", ["symmetric", "pair", "small-cluster", "open-set"])
def test_corrupt_table_touches_only_training_labels(kind: noise.NoiseKind) -> None:
    table = drawn_table()
    noisy = corrupt_table(table, kind, 1 / 3, seed=0)
    assert noisy.clean_labels is not None and (noisy.clean_labels == table.labels).all()
    assert noisy.classes == table.classes and noisy.paths == table.paths
    test = np.asarray(table.splits) == "test"
    assert (noisy.labels[test] == table.labels[test]).all()
    train = noisy.split("train")
    assert "z" not in train.classes  # a class of the test split is no wrong label
    assert train.is_noisy is not None and train.is_noisy.sum() == 20
    assert (table.labels == drawn_table().labels).all()
    dissolves = kind in ("small-cluster", "open-set")
    assert len(train.classes) == (2 if dissolves else 3)
    assert train.clean_labels is not None and (train.clean_labels == -1).sum() == (20 if dissolves else 0)


def test_corrupt_table_without_splits_is_corrupted_as_a_whole() -> None:
    noisy = corrupt_table(drawn_table(splits=False), "symmetric", 0.5, seed=0)
    assert noisy.is_noisy is not None and noisy.is_noisy.sum() == 40


def test_corrupt_table_with_given_features_uses_a_row_for_each_image() -> None:
    table = drawn_table()
    features = np.random.default_rng(0).normal(size=(80, 4))
    noisy = corrupt_table(table, "small-cluster", 1 / 3, 0, features=features)
    train = np.flatnonzero(np.asarray(table.splits) == "train")
    expected = corrupt_labels(table.labels[train], 4, "small-cluster", 1 / 3, 0, features=features[train])
    assert (noisy.labels[train] == expected).all()
    with pytest.raises(ValueError, match="80 rows"):
        corrupt_table(table, "small-cluster", 1 / 3, 0, features=features[train])


def test_corrupt_table_refuses_wrong_labels_and_data_without_training_split() -> None:
    noisy = corrupt_table(drawn_table(), "symmetric", 0.5, seed=0)
    with pytest.raises(ValueError, match=r"50.0% of the labels are wrong already"):
        corrupt_table(noisy, "symmetric", 0.5, seed=0)
    with pytest.raises(ValueError, match="none is called 'train'"):
        corrupt_table(drawn_table().select(range(0, 80, 4)), "symmetric", 0.5, seed=0)
    with pytest.raises(ValueError, match="needs a rate"):
        corrupt_table(drawn_table(), "small-cluster", None, seed=0)
    known = replace(drawn_table(), clean_labels=drawn_table().labels)
    assert (
        corrupt_table(known, "pair", 0.5, 0).labels == corrupt_table(drawn_table(), "pair", 0.5, 0).labels
    ).all()


def test_pixel_features_of_near_and_unreadable_images(caplog: pytest.LogCaptureFixture) -> None:
    data = [encoded(i // 2) for i in range(200)]
    data[7] = b"no image"
    table = ImageTable(BytesImages(data), [str(i) for i in range(200)], np.zeros(200, dtype=np.int64), ["a"])
    features = pixel_features(table)
    assert features.shape == (200, 64) and np.isfinite(features).all()
    assert (features[7] == 0).all() and "'7'" in caplog.text
    np.testing.assert_allclose(features[0:6:2], features[1:7:2], atol=1e-6)
    assert np.linalg.norm(features[0] - features[2]) > 0.1


@pytest.mark.skipif(DATA is None, reason="PRISM_DATA is not set")
def test_symmetric_noise_on_real_data() -> None:
    table = read_table(Path(str(DATA)) / "omniglot.parquet")
    train = corrupt_table(table, "symmetric", 0.5, seed=0).split("train")
    assert train.num_classes == 964
    assert train.is_noisy is not None and train.is_noisy.sum() == 9640


@pytest.mark.skipif(DATA is None, reason="PRISM_DATA is not set")
def test_small_clusters_do_not_depend_on_the_threads() -> None:
    assert DATA is not None
    table = read_table(Path(DATA, "grocery.parquet"))
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(corrupt_table(table, "small-cluster", 0.25, seed=0).labels)
    assert np.array_equal(*found)
