import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prism_dml.selection import SmoothTopR, TopR


def known_all(count: int) -> torch.Tensor:
    return torch.ones(count, dtype=torch.bool)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 40), st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.35, 0.5, 0.7, 0.9, 0.99]), st.integers(0, 99)
)
def test_top_r_rejects_exactly_the_lowest(batch: int, rate: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # few distinct values: ties must not change the number
    probability = torch.randint(6, (batch,), generator=generator) / 5
    known = torch.rand(batch, generator=generator) < 0.8
    rejected, threshold = TopR()(probability.log(), known, torch.tensor(rate))
    percent = round(100 * rate)
    number = int(known.sum()) * percent // 100  # integers: free of floating point
    assert rejected.sum() == number
    assert not (rejected & ~known).any()
    stays = known & ~rejected
    if number and stays.any():
        assert probability[rejected].max() <= probability[stays].min() == pytest.approx(float(threshold))
    assert 0 <= threshold <= 1


@pytest.mark.parametrize(
    "batch, rate, number", [(10, 0.3, 3), (10, 0.7, 7), (100, 0.29, 29), (64, 0.5, 32), (10, 0.1, 1),
                            (9, 0.1, 0), (375, 0.072, 27), (750, 0.036, 27), (3, 0.3, 0), (1, 0.5, 0),
                            (1000, 0.999, 999), (100_000, 0.7, 70_000)]
)  # fmt: skip
def test_top_r_counts_are_free_of_rounding(batch: int, rate: float, number: int) -> None:
    probability = torch.linspace(0, 1, batch)
    rejected, _ = TopR()(probability, known_all(batch), torch.tensor(rate))
    assert rejected.nonzero().flatten().tolist() == list(range(number))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9]), st.integers(0, 999))
def test_smooth_top_r_against_loops(window: int, rate: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    rule, quantiles = SmoothTopR(window), []
    for _ in range(12):
        batch = int(generator.integers(0, 9))
        probability = generator.random(batch).astype(np.float32)
        known = generator.random(batch) < 0.7
        ordered = sorted(float(p) for p, k in zip(probability, known, strict=True) if k)
        if ordered:
            place = rate * (len(ordered) - 1)
            low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
            quantiles.append(low + (high - low) * (place - math.floor(place)))
        recent = quantiles[-window:]
        threshold = sum(recent) / len(recent) if recent and rate > 0 else 0.0
        rejected, given_threshold = rule(
            torch.from_numpy(probability).log(), torch.from_numpy(known), torch.tensor(rate)
        )
        if batch:
            assert given_threshold.item() == pytest.approx(threshold, abs=1e-6)
        for p, k, r in zip(probability, known, rejected.tolist(), strict=True):
            if abs(p - threshold) > 2e-5:
                assert r == (bool(k) and p < threshold)


def test_smooth_top_r_forgets_after_the_window() -> None:
    rule = SmoothTopR(2)
    for value, mean in [(0.9, 0.9), (0.1, 0.5), (0.3, 0.2), (0.5, 0.4)]:
        _, threshold = rule(torch.full((4,), value).log(), known_all(4), torch.tensor(0.5))
        assert threshold.item() == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize("rule", [TopR(), SmoothTopR(3)])
def test_rate_zero_rejects_nothing(rule) -> None:
    for value in (0.9, 0.0, 0.5):
        rejected, threshold = rule(torch.tensor([value, 0.0, 1.0]).log(), known_all(3), torch.tensor(0.0))
        assert not rejected.any() and threshold == 0


def test_equal_probabilities_are_not_rejected_by_the_rounding_of_their_mean() -> None:
    for value in (0.1, 0.3522, 1 / 7, 1 / 98):
        rule = SmoothTopR(50)
        for _ in range(60):
            rejected, _ = rule(torch.full((4,), value).log(), known_all(4), torch.tensor(0.3))
            assert not rejected.any()


def test_smooth_top_r_can_reject_a_whole_batch() -> None:
    rule = SmoothTopR(30)
    for _ in range(20):
        rule(torch.full((4,), 0.9).log(), known_all(4), torch.tensor(0.2))
    rejected, _ = rule(torch.full((4,), 0.1).log(), known_all(4), torch.tensor(0.2))
    assert rejected.all()


@pytest.mark.parametrize("rule", [TopR(), SmoothTopR(3)])
def test_batches_without_evidence_change_nothing(rule) -> None:
    rule(torch.tensor([0.2, 0.4]).log(), known_all(2), torch.tensor(0.5))
    before = {key: value.clone() for key, value in rule.state_dict().items()}
    for probability, known in [(torch.zeros(0), known_all(0)), (torch.zeros(3), ~known_all(3))]:
        rejected, threshold = rule(probability.log(), known, torch.tensor(0.5))
        assert not rejected.any() and rejected.shape == probability.shape and threshold.isfinite()
    for key, value in rule.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0, equal_nan=True)


def test_smooth_top_r_in_logarithms_takes_their_mean() -> None:
    rule = SmoothTopR(4, in_logarithms=True)
    for value, mean in [(-900.0, -900.0), (-100.0, -500.0), (-2.0, -334.0)]:
        rejected, threshold = rule(torch.full((3,), value), known_all(3), torch.tensor(0.5))
        assert rejected.all() == (value < mean - 1) and threshold == math.exp(mean)
    rejected, threshold = rule(torch.tensor([-400.0, -200.0]), known_all(2), torch.tensor(0.5))
    assert rejected.tolist() == [True, False] and threshold == 0
