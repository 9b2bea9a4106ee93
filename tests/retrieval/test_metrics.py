"""Retrieval metrics against loops over ranked lists."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prism_dml.retrieval import bootstrap_interval, nearest_neighbours, retrieval_metrics, retrieval_scores
from prism_dml.retrieval.metrics import CHUNK_BYTES


def naive_scores(query, labels, reference, targets, ks):
    itself = reference is None
    targets = labels if itself else targets
    depth = len(targets) - itself
    ranked = nearest_neighbours(query, reference, depth)[1].tolist()
    rows = []
    for i, order in enumerate(ranked):
        matches = [bool(targets[j] == labels[i]) for j in order]
        relevant = sum(matches)
        if relevant == 0:
            rows.append([math.nan] * (3 + len(ks)))
            continue
        precisions = [sum(matches[: n + 1]) / (n + 1) for n in range(depth)]
        average = sum(p for p, m in zip(precisions[:relevant], matches, strict=False) if m) / relevant
        rows.append(
            [matches[0], sum(matches[:relevant]) / relevant, average, *(any(matches[:k]) for k in ks)]
        )
    names = ["precision_at_1", "r_precision", "map_at_r", *(f"recall_at_{k}" for k in ks)]
    return dict(zip(names, torch.tensor(rows, dtype=torch.float64).T, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    queries=st.integers(2, 12),
    references=st.integers(0, 25),
    classes=st.integers(1, 6),
    chunk_bytes=st.sampled_from([1, 200, CHUNK_BYTES]),
    ks=st.sampled_from([(1, 2, 4, 8), (3,), (1, 100)]),
    seed=st.integers(0, 99),
)
def test_scores_match_loops(queries, references, classes, chunk_bytes, ks, seed):
    generator = np.random.default_rng(seed)
    axes = np.concatenate([np.eye(3), -np.eye(3), np.zeros((1, 3))]).astype(np.float32)  # ties are exact
    query = axes[generator.integers(0, 7, queries)]
    labels = generator.integers(0, classes, queries)
    reference = axes[generator.integers(0, 7, references)] if references else None
    targets = generator.integers(1, classes + 1, references) if references else None
    got = retrieval_scores(query, labels, reference, targets, ks, chunk_bytes)
    expected = naive_scores(query, labels, reference, targets, ks)
    assert list(got) == list(expected)
    for name, values in got.items():
        torch.testing.assert_close(values, expected[name], equal_nan=True)


@pytest.mark.parametrize("chunk_bytes", [20_000, CHUNK_BYTES])
@pytest.mark.parametrize("unit", [True, False])
def test_equal_to_the_definition_in_double_precision(chunk_bytes, unit):
    """MAP@R by a full sort of all similarities."""
    generator = np.random.default_rng(0)
    labels = np.append(generator.integers(0, 90, 900), [90] * 60)  # R from a few to 59
    rows = generator.normal(size=(91, 16))[labels] + 0.8 * generator.normal(size=(960, 16))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True) if unit else 3 * rows).astype(np.float32)
    exact = rows.astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    similarities = exact @ exact.T
    np.fill_diagonal(similarities, -np.inf)
    expected = []
    for i, order in enumerate(np.argsort(-similarities, axis=1)):
        relevant = (labels == labels[i]).sum() - 1
        matches = labels[order[:relevant]] == labels[i]
        expected.append((matches.cumsum() / np.arange(1, relevant + 1))[matches].sum() / relevant)
    got = retrieval_scores(rows, labels, chunk_bytes=chunk_bytes)["map_at_r"].numpy()
    assert np.abs(got - expected).max() < 1e-6
    assert 0.2 < np.mean(expected) < 0.8


def test_metrics_average_the_scores():
    generator = np.random.default_rng(0)
    rows, labels = generator.normal(size=(60, 3)), np.append(generator.integers(0, 5, 58), [77, 78])
    labels[:20] = 0  # classes of different sizes: macro differs from the mean over queries
    metrics = retrieval_metrics(rows, labels)
    scores = {
        name: values[:58].numpy()
        for name, values in naive_scores(rows, labels, None, None, (1, 2, 4, 8)).items()
    }
    assert metrics["num_queries"] == 58 and metrics["num_skipped"] == 2
    for name, values in scores.items():
        assert metrics[name] == pytest.approx(values.mean())
    for name in ("precision_at_1", "r_precision", "map_at_r"):
        by_class = [scores[name][labels[:58] == c].mean() for c in range(5)]
        assert metrics[f"macro_{name}"] == pytest.approx(np.mean(by_class))
        assert metrics[f"macro_{name}"] != pytest.approx(metrics[name])
    assert list(metrics) == [
        *("precision_at_1", "r_precision", "map_at_r"),
        *("recall_at_1", "recall_at_2", "recall_at_4", "recall_at_8"),
        *("macro_precision_at_1", "macro_r_precision", "macro_map_at_r"),
        *("num_queries", "num_skipped"),
    ]


def test_a_case_worked_by_hand():
    """Matches at ranks 1 and 3 of R = 3: MAP@R = (1/1 + 2/3) / 3, R-Precision = 2/3."""
    angles = torch.tensor([0.1, 0.2, 0.3, 0.4])
    reference = torch.stack([angles.cos(), angles.sin()], dim=1)
    metrics = retrieval_metrics(
        torch.tensor([[1.0, 0.0]]), torch.tensor([5]), reference, torch.tensor([5, 6, 5, 5]), ks=(1, 2)
    )
    assert metrics["map_at_r"] == pytest.approx((1 + 2 / 3) / 3)
    assert metrics["r_precision"] == pytest.approx(2 / 3)
    assert metrics["precision_at_1"] == metrics["recall_at_2"] == 1.0


def test_duplicates_do_not_hide_the_query():
    """The nearest neighbour is not assumed to be the query: here duplicates of another class come first."""
    rows = torch.ones(4, 3)
    scores = retrieval_scores(rows, torch.tensor([0, 1, 0, 1]))
    assert scores["precision_at_1"].tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    labels = torch.arange(50) % 7
    assert retrieval_metrics(rows, labels) == retrieval_metrics(rows.double(), labels)


def test_labels_may_be_far_apart_and_negative():
    rows = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(30) % 3
    far = torch.tensor([-(2**60), -1, 2**60])[labels]
    assert retrieval_metrics(rows, labels) == retrieval_metrics(rows, far)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query_labels": np.arange(4)}, "no query has a reference"),
        ({"query_labels": np.zeros(3, dtype=np.int64)}, "labels of query"),
        ({"query_labels": np.zeros(4)}, "labels of query"),
        ({"query_labels": np.array(["a", "b", "a", "b"])}, "labels of query"),
        ({"reference": np.ones((2, 2))}, "given together"),
        ({"reference_labels": np.zeros(2, dtype=np.int64)}, "given together"),
        ({"reference": np.ones((2, 3)), "reference_labels": np.zeros(2, dtype=np.int64)}, "dimensions"),
        ({"query": np.full((4, 2), np.nan)}, "not finite"),
        (
            {"query": np.zeros((0, 2)), "query_labels": np.zeros(0, dtype=np.int64)},
            "no query has a reference",
        ),
        ({"ks": (0, 1)}, "ks must be"),
        ({"ks": ()}, "ks must be"),
    ],
)
def test_mistakes(arguments, message):
    usual = {"query": np.ones((4, 2)), "query_labels": np.zeros(4, dtype=np.int64)}
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(**(usual | arguments))


def test_bootstrap_interval_covers_the_mean_and_repeats_itself():
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(60):
        low, high = bootstrap_interval(generator.normal(size=200), seed=trial, resamples=300)
        covered += low < 0.0 < high
    assert covered >= 50  # 57 expected, standard deviation 1.7
    values = torch.rand(100, generator=torch.Generator().manual_seed(0))
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)
    narrow, wide = bootstrap_interval(values, 1, level=0.5), bootstrap_interval(values, 1, level=0.99)
    assert wide[0] < narrow[0] < values.mean() < narrow[1] < wide[1]
    spread = 1.96 * values.std().item() / math.sqrt(100)
    assert bootstrap_interval(values, 1)[1] - values.mean().item() == pytest.approx(spread, rel=0.15)


def test_bootstrap_interval_leaves_out_nan():
    values = torch.tensor([0.0, 1.0, 1.0, torch.nan])
    assert bootstrap_interval(values, 0) == bootstrap_interval(values[:3], 0)
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval(values[3:], 0)
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval(values, 0, level=95)
