import numpy as np
import pandas as pd
import pytest
import torch

from prism_dml.audit import find_label_issues, make_audit, suggest_corrections
from prism_dml.audit.summary import trusted_neighbours
from prism_dml.retrieval.neighbours import unit_rows


def judged(given, suggested, score, issue):
    frame = pd.DataFrame(
        {
            "is_label_issue": np.array(score) < 0.5,
            "label_score": np.array(score, dtype=float),
            "given_label": given,
            "suggested_label": suggested,
            "suggested_score": 1 - np.array(score, dtype=float),
            "issue": issue,
        }
    )
    frame.attrs = {"noise_rate": 0.4, "noise_rate_interval": (0.35, 0.45), "ambiguous_classes": [("b", "a")]}
    return frame


@pytest.fixture
def audit():
    score = [0.9, 0.2, 0.1, 0.8, 0.0, 0.3]
    issue = ["", "wrong label", "outlier", "", "wrong label", "ambiguous classes"]
    vectors = np.random.default_rng(0).normal(size=(6, 4))
    paths = [f"{i}" for i in range(6)]
    return make_audit(
        judged(list("aaabba"), list("abbbab"), score, issue), vectors, paths, "f", np.arange(6) + 10
    )


def test_numbers_of_the_overview(audit):
    assert (audit.noise_rate, audit.noise_interval) == (0.4, (0.35, 0.45))
    assert audit.ambiguous_classes == [("b", "a")]
    assert audit.suspects.tolist() == [4, 2, 1, 5]
    assert audit.num_issues == 4
    assert audit.confusion.to_numpy().tolist() == [["a", "b", 3], ["b", "a", 1]]
    classes = audit.classes.set_index("name")
    assert classes.loc["a"].tolist() == [4, 3, pytest.approx(0.625), "b"]
    assert classes.loc["b"].tolist() == [2, 1, pytest.approx(0.6), "a"]


def test_suggestions(audit):
    found = suggest_corrections(audit)
    assert found.fingerprint == "f"
    assert [(c.index, c.action, c.label) for c in found.items] == [
        (11, "relabel", "b"), (12, "drop", None), (14, "relabel", "a"),
    ]  # fmt: skip


def test_neighbours_are_those_of_a_loop():
    rng = np.random.default_rng(1)
    rows, labels = unit_rows(rng.normal(size=(60, 5)), "rows"), rng.integers(0, 4, 60)
    trusted, suspects = np.arange(0, 60, 2), np.arange(1, 60, 2)
    labels[trusted[labels[trusted] == 3][1:]] = 0  # class 3 has one trusted sample
    wanted = rng.integers(0, 6, len(suspects))  # classes 4 and 5 have none
    found = trusted_neighbours(rows, labels, trusted, suspects, wanted, k=3)
    for row, (suspect, number) in enumerate(zip(suspects, wanted, strict=True)):
        members = [i for i in trusted if labels[i] == number]
        nearest = sorted(members, key=lambda i: -float(rows[i] @ rows[suspect]))[:3]
        assert found[row].tolist() == nearest + [-1] * (3 - len(nearest))


@pytest.mark.parametrize("score", [[0.9, 0.9], [0.1, 0.1]])
def test_all_right_and_all_wrong(score):
    audit = make_audit(judged(list("ab"), list("ba"), score, ["", ""]), np.eye(2), ["0", "1"], "f")
    assert len(audit.suspects) == audit.num_issues == 2 * (score[0] < 0.5)
    assert audit.given_neighbours.shape == (audit.num_issues, 3)
    assert np.isfinite(audit.map_points).all()


def test_one_sample_and_equal_samples_have_a_map():
    for count in (1, 5):
        issues = judged(["a"] * count, ["a"] * count, [0.9] * count, [""] * count)
        audit = make_audit(issues, np.ones((count, 3)), ["p"] * count, "f")
        assert np.isfinite(audit.map_points).all()


def test_lengths_must_fit():
    issues = judged(["a"], ["a"], [0.9], [""])
    with pytest.raises(ValueError, match="1 judgements, 2 embeddings and 1 paths do not fit together"):
        make_audit(issues, np.eye(2), ["p"], "f")


def test_issues_of_separate_clusters():
    rng = np.random.default_rng(0)
    truth = np.arange(300) % 3
    given = truth.copy()
    given[:30] = (truth[:30] + 1) % 3
    vectors = np.eye(3, 8)[truth] + 0.1 * rng.normal(size=(300, 8))
    for embeddings in (vectors, torch.from_numpy(vectors)):
        found = find_label_issues(embeddings, np.array(["x", "y", "z"])[given])
        assert np.flatnonzero(found["is_label_issue"]).tolist() == list(range(30))
        assert found["suggested_label"].tolist() == np.array(["x", "y", "z"])[truth].tolist()
        assert found["label_score"].between(0, 1).all()
