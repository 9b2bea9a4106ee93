import math

import pytest
import torch
from sklearn.isotonic import IsotonicRegression

from prism_dml.selection import cross_fit
from prism_dml.selection.cross_fit import judge_labels
from prism_dml.selection.open_set import _falling, _ranks, of_a_class

CLASSES, EACH = 60, 24


def made_open(dissolved: int, wrong: float, seed: int):
    """Classes of which the last are given labels of the others, two fifths one and the rest any; some of the others'
    labels are wrong.

    Returns rows, truth (of dissolved classes -1), labels, similarities, neighbours.
    """
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(CLASSES).repeat_interleave(EACH)
    kept = CLASSES - dissolved
    rows = 0.7 * torch.randn(CLASSES, 128, generator=generator)[truth]
    rows = torch.nn.functional.normalize(rows + torch.randn(len(truth), 128, generator=generator), dim=1)
    shift = torch.randint(1, kept, (len(truth),), generator=generator)
    mistaken = torch.rand(len(truth), generator=generator) < wrong
    labels = torch.where(mistaken, (truth + shift) % kept, truth)
    most = torch.randint(kept, (CLASSES,), generator=generator)[truth]
    any_class = torch.randint(kept, (len(truth),), generator=generator)
    pieces = torch.where(torch.rand(len(truth), generator=generator) < 0.4, most, any_class)
    labels = torch.where(truth >= kept, pieces, labels)
    near = (rows @ rows.T).fill_diagonal_(-math.inf).topk(64, dim=1)
    return rows, torch.where(truth < kept, truth, -1), labels, near.values, near.indices


def put_right(judgement, labels):
    """Where another class is more likely than not."""
    return (judgement.suggested != labels) & (judgement.suggested_probability > 0.5)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("dissolved, wrong", [(20, 0.05), (20, 0.0), (30, 0.0)])
def test_images_of_no_class_are_not_put_into_wrong_ones(monkeypatch, dissolved, wrong, seed):
    """Few other wrong labels are put right all the same. (Many hide the images of no class: nothing is done then.)"""
    rows, truth, labels, *near = made_open(dissolved, wrong, seed)
    found = judge_labels(rows, labels, *near)
    monkeypatch.setattr(cross_fit, "of_a_class", lambda labels, *of: torch.ones(len(labels)))
    unasked = judge_labels(rows, labels, *near)
    assert torch.equal(found.clean_probability, unasked.clean_probability)
    wrongly, rightly = (
        [int((put_right(judgement, labels) & of).sum()) for judgement in (found, unasked)]
        for of in (truth < 0, (truth >= 0) & (truth != labels))
    )
    assert wrongly[1] > 0.05 * (truth < 0).sum(), "without, many are"
    assert wrongly[0] < (0.8 if wrong else 0.25) * wrongly[1]
    assert rightly[0] >= 0.7 * rightly[1]
    doubted = (truth < 0) & (found.clean_probability < 0.5)
    assert found.nowhere[doubted].mean() > 0.1 > unasked.nowhere[doubted].mean()
    total = found.chances.sum(dim=1) + found.nowhere
    assert (total <= 1 + 1e-6).all() and total.min() > 0.98


@pytest.mark.parametrize("wrong", [0.0, 0.2, 0.5, 0.8])
def test_where_all_is_of_a_class_nothing_changes(monkeypatch, wrong):
    rows, _, labels, *near = made_open(0, wrong, 0)
    seen = []

    def asked(*of):
        seen.append(of_a_class(*of))
        return seen[0]

    monkeypatch.setattr(cross_fit, "of_a_class", asked)
    judge_labels(rows, labels, *near)
    assert (seen[0] == 1).all()


def test_ranks_among_the_members_of_the_class():
    generator = torch.Generator().manual_seed(0)
    members, of = (torch.randint(most, (50,), generator=generator) for most in (8, 5))
    numbers, classes = (torch.randint(most, (200,), generator=generator) for most in (8, 6))
    below, upto = _ranks(numbers, classes, members, of, 8)
    for i in range(200):
        fellows = members[of == classes[i]]
        places = len(fellows) + 1
        assert below[i] == pytest.approx(float((fellows < numbers[i]).sum() / places))
        assert upto[i] == pytest.approx(float(((fellows <= numbers[i]).sum() + 1) / places))
    alone = classes == 5  # a class without members: any rank
    assert alone.any() and (below[alone] == 0).all() and (upto[alone] == 1).all()


def test_falling_is_least_squares():
    density = torch.rand(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = IsotonicRegression(increasing=False).fit_transform(range(20), density.numpy())
    torch.testing.assert_close(_falling(density), torch.from_numpy(expected))


def test_nothing_suggested_and_nobody_believed():
    labels, neighbours = torch.arange(3).repeat(4), (torch.arange(12)[:, None] + torch.arange(1, 6)) % 12
    some, nothing = torch.ones(12), torch.zeros(12)
    every, none = some.bool(), nothing.bool()
    suggested = (labels + 1) % 3
    assert (of_a_class(labels, neighbours, every, suggested, nothing) == 1).all()
    assert (of_a_class(labels, neighbours, none, suggested, some) == 1).all()
