import numpy as np
import pytest

from prism_dml.audit import calibration_error, measure_reliability


def test_bins_against_a_loop():
    rng = np.random.default_rng(0)
    score = np.append(rng.uniform(0, 0.7, 500), [0.0, 1.0])
    right = rng.random(502) < score**2
    table = measure_reliability(score, right, bins=10)
    assert table["count"].sum() == 502 and len(table) == 8  # nothing from 0.7 to 0.9
    error = 0.0
    for k in range(10):
        inside = [i for i in range(502) if k == min(int(score[i] * 10), 9)]
        if inside:
            row = table.iloc[k if k < 9 else 7]
            assert row["label_score"] == pytest.approx(score[inside].mean())
            assert row["share_right"] == pytest.approx(right[inside].mean())
            error += len(inside) / 502 * abs(score[inside].mean() - right[inside].mean())
    assert calibration_error(table) == pytest.approx(error)


def test_true_probabilities_have_no_error():
    rng = np.random.default_rng(1)
    score = rng.random(20_000)
    assert calibration_error(measure_reliability(score, rng.random(20_000) < score)) < 0.02
    assert calibration_error(measure_reliability(1 - score, rng.random(20_000) < score)) > 0.3


def test_no_samples():
    assert calibration_error(measure_reliability(np.zeros(0), np.zeros(0, bool))) == 0
