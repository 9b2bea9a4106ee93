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
@pytest.mark.parametrize("dissolved, wrong", [(30, 0.1), (20, 0.0), (30, 0.0)])
def test_images_of_no_class_are_not_put_into_wrong_ones(monkeypatch, dissolved, wrong, seed):
    """Other wrong labels, which are put right all the same, hide some of them."""
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
    assert wrongly[0] < (0.9 if wrong else 0.25) * wrongly[1]
    assert not wrong or rightly[0] >= 0.95 * rightly[1] > 0
    doubted = (truth < 0) & (found.clean_probability < 0.5)
    assert found.nowhere[doubted].mean() > (0.1 if wrong else 0.4) > 0.05 > unasked.nowhere[doubted].mean()
    assert (found.other_kind <= found.nowhere).all() and (unasked.other_kind == 0).all()
    total = found.chances.sum(dim=1) + found.nowhere
    assert (total <= 1 + 1e-6).all() and total.min() > 0.98


@pytest.fixture
def asked(monkeypatch):
    """What `of_a_class` says in a judgement."""
    seen = []

    def remember(*of):
        seen.append(of_a_class(*of))
        return seen[-1]

    monkeypatch.setattr(cross_fit, "of_a_class", remember)
    return seen


@pytest.mark.parametrize("wrong", [0.0, 0.2, 0.5, 0.8])
def test_where_all_is_of_a_class_nothing_changes(asked, wrong):
    for seed in range(3):
        rows, _, labels, *near = made_open(0, wrong, seed)
        judge_labels(rows, labels, *near)
    assert len(asked) == 3 and all((said == 1).all() for said in asked)


@pytest.mark.parametrize("harder", [1.4, 1.8])
@pytest.mark.parametrize("seed", [0, 1])
def test_hard_images_are_not_taken_for_images_of_no_class(asked, harder, seed):
    """Wrong labels on images farther from their classes' centres than others: 40 classes, of which all images are."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(40).repeat_interleave(24)
    wrong = torch.rand(960, generator=generator) < 0.2
    noise = torch.randn(960, 64, generator=generator) * torch.where(wrong, harder, 1.0)[:, None]
    rows = 0.7 * torch.randn(40, 64, generator=generator)[truth] + noise
    rows = torch.nn.functional.normalize(rows, dim=1)
    labels = torch.where(wrong, (truth + torch.randint(1, 40, (960,), generator=generator)) % 40, truth)
    near = (rows @ rows.T).fill_diagonal_(-math.inf).topk(64, dim=1)
    found = judge_labels(rows, labels, near.values, near.indices)
    assert (found.clean_probability < 0.5)[wrong].float().mean() > 0.7
    assert asked[0][wrong].mean() > 0.85


def test_so_many_are_of_a_class_as_the_ranks_show():
    """Suspects of which some lie as members do, others among half as many of the class, whose labels are doubted."""
    generator = torch.Generator().manual_seed(0)
    members, suspects, own = 3000, 1000, 600
    labels = torch.zeros(members + 2 * suspects, dtype=torch.long)
    labels[members:] = 1  # of the suspects, and of others that are doubted
    numbers = torch.randint(20, 40, (members + suspects,), generator=generator)  # of 64 neighbours
    numbers[members + own :] //= 2
    beside = torch.arange(64)[None, :] >= numbers[:, None]
    near = torch.randint(members, (members + suspects, 64), generator=generator)
    doubted = torch.randint(members + suspects, members + 2 * suspects, near.shape, generator=generator)
    near = torch.cat([torch.where(beside, doubted, near), near[:suspects]])
    believed = torch.arange(len(labels)) < members
    weight = torch.zeros(len(labels))
    weight[members : members + suspects] = 1
    found = of_a_class(labels, near, believed, torch.zeros_like(labels), weight)[members : members + suspects]
    assert found[:own].mean() == pytest.approx(1, abs=0.05)
    assert found[own:].mean() < 0.1


def test_few_suspects_tell_nothing():
    labels, near = torch.arange(3).repeat(400), torch.arange(1200)[:, None] - torch.arange(1, 65)
    believed = torch.arange(1200) >= 90
    suspects, other = (~believed).float(), (labels + 1) % 3
    assert (of_a_class(labels, near % 1200, believed, other, suspects) == 1).all()
    assert (of_a_class(labels, near % 1200, believed, other, torch.zeros(1200)) == 1).all()
    nobody = torch.zeros(1200, dtype=torch.bool)  # ranks among nobody
    assert (of_a_class(labels, near % 1200, nobody, other, torch.ones(1200)) == 1).all()


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
