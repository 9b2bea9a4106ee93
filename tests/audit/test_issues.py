import numpy as np
import pandas as pd
import pytest
import torch

import prism_dml
from prism_dml import find_label_issues
from prism_dml.data import SCORES
from prism_dml.retrieval import graph
from prism_dml.selection import candidates, cross_fit

COLUMNS = ["is_label_issue", "label_score", "given_label", "suggested_label", "suggested_score", "issue"]


def clusters(classes=20, size=40, dim=16, spread=0.25, seed=0):
    """Unit vectors about a random direction for each class, and their true labels, in random order."""
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.repeat(np.arange(classes), size))
    points = unit(rng.normal(size=(classes, dim)))[truth] + spread * rng.normal(size=(classes * size, dim))
    return unit(points), truth


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def mislabel(truth, rate, seed=1):
    """Exactly a share of the labels, changed to any other class."""
    rng = np.random.default_rng(seed)
    wrong = np.zeros(len(truth), bool)
    wrong[rng.permutation(len(truth))[: round(rate * len(truth))]] = True
    classes = truth.max() + 1
    return np.where(wrong, (truth + rng.integers(1, classes, len(truth))) % classes, truth), wrong


def calibration_error(score, right, bins=10):
    place = np.clip((score * bins).astype(int), 0, bins - 1)
    return sum(abs(score[place == b].sum() - right[place == b].sum()) for b in range(bins)) / len(score)


@pytest.fixture(scope="module")
def half_wrong():
    embeddings, truth = clusters(classes=30, size=50, spread=0.2)
    labels, wrong = mislabel(truth, 0.5)
    return embeddings, truth, labels, wrong, find_label_issues(embeddings, labels)


def test_is_public():
    assert prism_dml.find_label_issues is find_label_issues


def test_one_row_a_sample_in_order(half_wrong):
    _, _, labels, _, issues = half_wrong
    assert list(issues.columns) == COLUMNS
    assert issues.index.equals(pd.RangeIndex(len(labels)))
    assert issues.given_label.tolist() == labels.tolist()
    for column in ("label_score", "suggested_score"):
        assert issues[column].between(0, 1).all()
    assert issues.is_label_issue.equals(issues.label_score <= 0.5)
    assert (issues.issue[issues.is_label_issue] != "").all()


def test_finds_wrong_labels_and_the_right_ones(half_wrong):
    _, truth, _, wrong, issues = half_wrong
    flagged = issues.is_label_issue.to_numpy()
    assert (flagged & wrong).sum() > 0.95 * flagged.sum() and (flagged & wrong).sum() > 0.95 * wrong.sum()
    assert (issues.suggested_label == truth)[wrong].mean() > 0.95
    assert (issues.suggested_label == issues.given_label)[~flagged].all()


@pytest.mark.parametrize(("rate", "spread"), [(0.1, 0.25), (0.3, 0.25), (0.7, 0.25), (0.1, 0.4), (0.5, 0.4)])
def test_scores_are_shares_of_right_labels(rate, spread):
    embeddings, truth = clusters(classes=20, size=100, spread=spread)
    labels, wrong = mislabel(truth, rate)
    issues = find_label_issues(embeddings, labels)
    assert calibration_error(issues.label_score.to_numpy(), ~wrong) < 0.05
    assert abs(issues.attrs["noise_rate"] - rate) < 0.05
    low, high = issues.attrs["noise_rate_interval"]
    assert 0 <= low <= issues.attrs["noise_rate"] <= high <= 1 and high - low < 0.1


@pytest.mark.parametrize("spread", [0.1, 0.25, 0.4])
def test_clean_labels_are_left_alone(spread):
    issues = find_label_issues(*clusters(spread=spread))
    assert issues.attrs["noise_rate"] < 0.02
    assert issues.is_label_issue.mean() < 0.01


def test_kind_of_labels_and_embeddings_does_not_matter():
    embeddings, truth = clusters(classes=8, size=20)
    labels, _ = mislabel(truth, 0.25)
    expected = find_label_issues(embeddings, labels)
    names = np.array([f"class <{k}>" for k in range(8)])
    for rows, given in (
        (torch.from_numpy(embeddings), torch.from_numpy(labels)),
        (embeddings * np.linspace(0.1, 9, len(embeddings))[:, None], labels.tolist()),
        (embeddings, names[labels]),
        (embeddings, names[labels].tolist()),
        (embeddings, 1000 - labels),
    ):
        found = find_label_issues(rows, given)
        np.testing.assert_allclose(found.label_score, expected.label_score, atol=1e-4)
        assert found.is_label_issue.equals(expected.is_label_issue)
        assert found.issue.equals(expected.issue)
    named = find_label_issues(embeddings, names[labels])
    assert named.suggested_label.tolist() == names[expected.suggested_label].tolist()
    half = find_label_issues(torch.from_numpy(embeddings).half(), labels)
    assert (half.is_label_issue == expected.is_label_issue).mean() > 0.98


def test_chunks_do_not_change_the_result(monkeypatch):
    embeddings, truth = clusters(classes=8, size=20)
    labels, _ = mislabel(truth, 0.25)
    expected = find_label_issues(embeddings, labels)
    monkeypatch.setattr(candidates, "CHUNK", 7)
    found = find_label_issues(embeddings, labels)
    np.testing.assert_allclose(found.label_score, expected.label_score, atol=1e-6)
    assert found.suggested_label.equals(expected.suggested_label)


def test_inverted_file_finds_the_same_issues(monkeypatch):
    embeddings, truth = clusters()
    labels, _ = mislabel(truth, 0.3)
    expected = find_label_issues(embeddings, labels)
    monkeypatch.setattr(graph, "EXACT_UP_TO", 100)
    found = find_label_issues(embeddings, labels)
    assert (found.is_label_issue == expected.is_label_issue).mean() > 0.98


def test_classes_of_one_or_two_samples():
    embeddings, truth = clusters()
    labels, wrong = mislabel(truth, 0.2)
    rng = np.random.default_rng(5)
    centres = unit(rng.normal(size=(2, 16)))
    pair = unit(centres[[0, 0]] + 0.05 * rng.normal(size=(2, 16)))
    rows = np.concatenate([embeddings, pair, centres[1:], embeddings[:1]])
    given = np.concatenate([labels, [100, 100, 101, 102]])
    issues = find_label_issues(rows, given)
    assert np.isfinite(issues[["label_score", "suggested_score"]].to_numpy()).all()
    assert not issues.is_label_issue.to_numpy()[-4:-2].any()  # two of a kind, away from all others
    assert (issues.is_label_issue[: len(labels)] == wrong).mean() > 0.97
    lonely = find_label_issues(rows[:30], np.arange(30))
    assert not lonely.is_label_issue.any()


@pytest.mark.parametrize("pairs", [0, 10])
def test_where_hardly_a_label_occurs_twice_not_all_are_wrong(pairs):
    """Of vectors with much in common, as those of many networks, which made a class's own place the least likely."""
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.arange(300 - pairs), np.arange(pairs)])
    vectors = unit(np.abs(rng.normal(size=(300, 64)))[labels] + 0.1 * rng.normal(size=(300, 64)))
    issues = find_label_issues(vectors, labels)
    low, _ = issues.attrs["noise_rate_interval"]
    assert not issues.is_label_issue.any() and low < 0.05


def test_class_of_which_all_are_wrong():
    embeddings, truth = clusters()
    labels = np.where(np.arange(len(truth)) % 25 == 0, 20, truth)  # a class made of samples of all others
    issues = find_label_issues(embeddings, labels)
    made_up = labels == 20
    assert issues.is_label_issue[made_up].mean() > 0.9
    assert (issues.suggested_label == truth)[made_up].mean() > 0.9
    assert issues.is_label_issue[~made_up].mean() < 0.02


def test_class_of_several_looks():
    embeddings, looks = clusters(classes=80, size=25, dim=64, spread=0.1)
    labels, wrong = mislabel(looks // 4, 0.3)
    issues = find_label_issues(embeddings, labels)
    assert (issues.is_label_issue == wrong).mean() > 0.95
    assert abs(issues.attrs["noise_rate"] - 0.3) < 0.05


def test_outliers():
    embeddings, truth = clusters(dim=32, spread=0.1)
    rng = np.random.default_rng(3)
    far = unit(rng.normal(size=(12, 32)))
    issues = find_label_issues(
        np.concatenate([embeddings, far]), np.concatenate([truth, rng.integers(20, size=12)])
    )
    assert (issues.issue[-12:] == "outlier").mean() > 0.7
    assert not (issues.issue[:-12] == "outlier").any()


def test_kinds_that_are_no_class_are_outliers(monkeypatch):
    """Images of 20 further kinds under labels of the classes: two fifths of a kind under one, the rest under any."""
    embeddings, truth = clusters(classes=60, size=25, dim=64, spread=0.12)
    rng = np.random.default_rng(4)
    one = np.where(rng.random(len(truth)) < 0.4, rng.integers(40, size=60)[truth], -1)
    other = truth >= 40
    labels = np.where(other, np.where(one < 0, rng.integers(40, size=len(truth)), one), truth)
    issues = find_label_issues(embeddings, labels)
    suspects = issues.is_label_issue & other
    assert suspects.sum() > 0.2 * other.sum()
    assert (issues.issue[suspects] == "outlier").mean() > 0.7
    relabelled = issues.suggested_label != issues.given_label
    assert not relabelled[issues.issue == "outlier"].any()
    relabelled &= issues.suggested_score > 0.5
    assert relabelled[suspects].mean() < 0.05
    assert issues.is_label_issue[~other].mean() < 0.01
    monkeypatch.setattr(cross_fit, "of_a_class", lambda labels, *of: torch.ones(len(labels)))
    assert not (find_label_issues(embeddings, labels).issue == "outlier").any()


def test_labels_in_a_list_stay_what_they_are():
    issues = find_label_issues(np.ones((4, 2)), [1, "1", 1, "1"])
    assert issues["given_label"].tolist() == [1, "1", 1, "1"]


def test_arrays_that_cannot_be_written_to_or_run_backwards(half_wrong, recwarn):
    embeddings, _, labels, _, issues = half_wrong
    backwards = np.asarray(embeddings)[::-1].copy()[::-1]
    backwards.flags.writeable = False
    pd.testing.assert_frame_equal(find_label_issues(backwards, labels), issues)
    assert not recwarn


@pytest.mark.parametrize("classes", [2, 10])
def test_where_most_are_copies_the_others_are_no_outliers(classes):
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.arange(600) % classes)
    centres = np.eye(16)[:classes]
    embeddings = centres[labels] + generator.normal(0, 0.1, (600, 16))
    embeddings[:480] = embeddings[240:480].repeat(2, axis=0)  # four in five are copies
    labels[:480] = labels[240:480].repeat(2)
    issues = find_label_issues(embeddings, labels)
    assert issues.attrs["noise_rate"] < 0.02 and not issues["is_label_issue"].any()


def test_conflicting_duplicates():
    embeddings, truth = clusters(spread=0.4)
    copies = np.arange(10)
    labels = np.concatenate([truth, (truth[:10] + 1) % 20, truth[10:15]])
    issues = find_label_issues(np.concatenate([embeddings, embeddings[copies], embeddings[10:15]]), labels)
    wrong_copies = issues.iloc[len(truth) : len(truth) + 10]
    assert (wrong_copies.issue == "conflicting duplicate").all()
    assert (wrong_copies.suggested_label.to_numpy() == truth[:10]).mean() >= 0.9
    assert issues.is_label_issue[:10].mean() < 0.2  # their other neighbours support them
    assert (issues.issue[len(truth) + 10 :] == "").all()  # equal labels do not conflict
    both = issues.label_score.to_numpy()[:10] + wrong_copies.label_score.to_numpy()
    assert (both <= 1 + 1e-6).all()


def test_two_names_for_one_thing():
    embeddings, truth = clusters(spread=0.2)
    labels, wrong = mislabel(truth, 0.2)
    second = (labels == 3) & (np.random.default_rng(2).random(len(labels)) < 0.5)
    names = np.array([f"class {k}" for k in range(20)] + ["another name"])[np.where(second, 20, labels)]
    issues = find_label_issues(embeddings, names)
    assert [set(pair) for pair in issues.attrs["ambiguous_classes"]] == [{"class 3", "another name"}]
    same = (truth == 3) & (labels == 3)
    assert (issues.issue[same] == "ambiguous classes").mean() > 0.9
    assert (issues.issue[truth != 3] == "ambiguous classes").mean() < 0.01
    assert issues.is_label_issue[same].mean() < 0.3
    assert issues.is_label_issue[wrong].mean() > 0.9


def test_the_same_images_under_two_names_of_one_thing_keep_them():
    embeddings, truth = clusters(spread=0.2)
    rng = np.random.default_rng(2)
    labels = np.where((truth == 3) & (rng.random(len(truth)) < 0.5), 20, truth)
    again = np.flatnonzero(truth == 3)[:10]
    others = np.where(labels[again] == 3, 20, 3)
    issues = find_label_issues(
        np.concatenate([embeddings, embeddings[again]]), np.concatenate([labels, others])
    )
    assert issues.attrs["ambiguous_classes"] == [(3, 20)]
    assert not (issues.issue == "conflicting duplicate").any()


@pytest.mark.parametrize(("scores", "suggested"), [((0.7, 0.7), [0, 1]), ((0.7, 0.6), [0, 0])])
def test_of_two_labels_that_are_as_likely_neither_takes_the_place_of_the_other(scores, suggested):
    embeddings, truth = clusters()
    between = unit(embeddings[truth == 0][:1] + embeddings[truth == 1][:1]).repeat(2, axis=0)
    heard = np.full(len(truth) + 2, np.nan)
    heard[-2:] = scores
    labels = np.concatenate([truth, [0, 1]])
    given = pd.DataFrame({"label_score": heard, "suggested_label": labels, "suggested_score": heard})
    issues = find_label_issues(np.concatenate([embeddings, between]), labels, given).iloc[-2:]
    assert issues.suggested_label.tolist() == suggested
    assert issues.label_score.sum() == pytest.approx(1)


def test_unknown_samples_have_no_issue():
    embeddings, truth = clusters(classes=6)
    labels, _ = mislabel(truth, 0.6)
    embeddings[::10] = 0
    issues = find_label_issues(embeddings, labels)
    unknown = issues.iloc[::10]
    assert not unknown.is_label_issue.any() and (unknown.issue == "").all()
    assert (unknown.suggested_label == unknown.given_label).all()
    np.testing.assert_allclose(unknown.label_score, 1 - issues.attrs["noise_rate"])


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_few_samples(rows):
    embeddings = np.eye(5)[:rows]
    for labels in (np.zeros(rows, int), np.arange(rows)):
        issues = find_label_issues(embeddings, labels)
        assert len(issues) == rows and np.isfinite(issues.label_score).all()
        assert not issues.is_label_issue.any()


def test_one_class_has_no_issues():
    embeddings, truth = clusters(classes=1)
    issues = find_label_issues(embeddings, truth)
    assert (issues.label_score == 1).all() and issues.attrs["noise_rate"] == 0
    assert list(issues.columns) == COLUMNS


def test_what_training_found_counts_in_place_of_the_embeddings(half_wrong):
    embeddings, _, labels, _, before = half_wrong
    scores = before[list(SCORES)].copy()
    pd.testing.assert_frame_equal(find_label_issues(embeddings, labels, scores), before, check_exact=False)

    believed, doubted, unheard = np.flatnonzero(before.label_score > 0.99)[:3]
    scores.loc[doubted] = (0.05, (labels[doubted] + 1) % 30, 0.9)
    scores.loc[unheard] = (np.nan, None, np.nan)
    scores.loc[believed, "label_score"] = 0.8
    issues = find_label_issues(embeddings, labels, scores)
    assert issues.label_score[doubted] == pytest.approx(0.05) and issues.is_label_issue[doubted]
    assert issues.suggested_label[doubted] == (labels[doubted] + 1) % 30
    assert issues.suggested_score[doubted] == pytest.approx(0.9) and issues.issue[doubted] == "wrong label"
    assert issues.label_score[believed] == issues.suggested_score[believed] == pytest.approx(0.8)
    assert not issues.is_label_issue[believed] and issues.suggested_label[believed] == labels[believed]
    columns = ["label_score", "suggested_label", "suggested_score"]
    assert issues.loc[unheard, columns].tolist() == before.loc[unheard, columns].tolist()
    rest = np.setdiff1d(np.arange(len(labels)), [believed, doubted])
    pd.testing.assert_frame_equal(issues.loc[rest], before.loc[rest])


def test_suggestions_as_text_of_labels_that_are_numbers(half_wrong):
    """As a file of embeddings has them."""
    embeddings, _, labels, _, before = half_wrong
    scores = before[list(SCORES)].copy()
    doubted = np.flatnonzero(before.label_score > 0.99)[0]
    scores["suggested_label"] = scores["suggested_label"].astype(str)
    scores.loc[doubted] = (0.05, str((labels[doubted] + 1) % 30), 0.9)
    issues = find_label_issues(embeddings, labels, scores)
    assert issues.suggested_label[doubted] == (labels[doubted] + 1) % 30
    assert issues.suggested_score[doubted] == pytest.approx(0.9)
    rest = np.arange(len(labels)) != doubted
    pd.testing.assert_frame_equal(issues[rest], before[rest])


def test_scores_where_a_number_and_its_text_are_two_labels():
    embeddings, truth = clusters(classes=3)
    labels = np.array([1, "1", "b"], dtype=object)[truth]
    before = find_label_issues(embeddings, labels)
    assert find_label_issues(embeddings, labels, before[list(SCORES)]).label_score.equals(before.label_score)


def test_a_suggestion_of_no_class_here_is_not_taken(half_wrong):
    embeddings, _, labels, wrong, before = half_wrong
    scores = before[list(SCORES)].copy()
    sample = np.flatnonzero(wrong & (before.suggested_score > 0.99))[0]
    scores.loc[sample] = (0.3, 999, 0.7)
    issues = find_label_issues(embeddings, labels, scores)
    assert issues.suggested_label[sample] == before.suggested_label[sample]
    assert issues.label_score[sample] == pytest.approx(0.3)
    assert issues.suggested_score[sample] == pytest.approx(0.7), "no more than is left"


def test_the_interval_is_as_wide_as_two_opinions_differ(half_wrong):
    embeddings, _, labels, _, before = half_wrong
    scores = before[list(SCORES)].copy()
    scores["label_score"] *= 0.8
    issues = find_label_issues(embeddings, labels, scores)
    rate, (low, high) = issues.attrs["noise_rate"], issues.attrs["noise_rate_interval"]
    assert rate == pytest.approx(1 - scores["label_score"].mean(), abs=1e-6)
    narrow, differ = before.attrs["noise_rate_interval"], rate - before.attrs["noise_rate"]
    assert differ > 0.05
    assert low == pytest.approx(narrow[0], abs=1e-6) and high == pytest.approx(
        narrow[1] + 2 * differ, abs=1e-6
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda scores: scores[:-1], "scores must have 1500 rows of label_score, suggested_label, sugg"),
        (lambda scores: scores.drop(columns="suggested_label"), "scores must have 1500 rows"),
        (lambda scores: scores.assign(label_score=1.5), r"label_score must be in \[0, 1\], or NaN"),
        (lambda scores: scores.assign(suggested_score=-np.inf), "suggested_score must be in"),
    ],
)
def test_scores_that_do_not_fit(half_wrong, change, message):
    embeddings, _, labels, _, before = half_wrong
    with pytest.raises(ValueError, match=message):
        find_label_issues(embeddings, labels, change(before[list(SCORES)]))


def test_same_answer_twice(half_wrong):
    embeddings, _, labels, _, issues = half_wrong
    pd.testing.assert_frame_equal(find_label_issues(embeddings, labels), issues)


@pytest.mark.parametrize(
    ("embeddings", "labels", "message"),
    [
        (np.ones((3, 2)), [0, 1], "labels must have shape"),
        (np.ones((3, 2)), [[0], [1], [2]], "labels must have shape"),
        (np.ones(3), [0, 1, 2], "embeddings must be floats of shape"),
        (np.ones((3, 2), int), [0, 1, 2], "embeddings must be floats"),
        (np.full((3, 2), np.nan), [0, 1, 2], "not finite"),
        (np.ones((0, 2)), [], "there are no samples"),
        (np.ones((3, 2)), np.array(["a", None, "b"], dtype=object), "1 label is missing, the first at row 1"),
        (np.ones((3, 2)), ["a", float("nan"), "b"], "1 label is missing, the first at row 1"),
    ],
)
def test_bad_input_is_one_clear_line(embeddings, labels, message):
    with pytest.raises(ValueError, match=message) as error:
        find_label_issues(embeddings, labels)
    assert "\n" not in str(error.value)


def test_embeddings_of_any_kind_of_number():
    vectors, labels = (
        np.eye(8)[np.arange(80) % 8] + 0.1 * np.random.default_rng(0).normal(size=(80, 8)),
        np.arange(80) % 8,
    )
    expected = find_label_issues(vectors, labels)["label_score"]
    for other in (
        pd.DataFrame(vectors),
        vectors.astype(">f8"),
        vectors.astype(np.longdouble),
        vectors.tolist(),
    ):
        found = find_label_issues(other, labels)["label_score"]
        np.testing.assert_allclose(found, expected, atol=1e-4)
    with pytest.raises((TypeError, ValueError), match="numeric|number|convert|float"):
        find_label_issues(pd.DataFrame({"a": ["x"] * 80}), labels)
