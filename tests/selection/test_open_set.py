import math

import pytest
import torch

from prism_dml.selection import cross_fit
from prism_dml.selection.cross_fit import judge_labels
from prism_dml.selection.open_set import _ranks, _uniform, of_a_class

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


def said_of(*suspects):
    """What `of_a_class` says, on average, of suspects in groups: how many they are; how many of their 64 neighbours are
    of the suggested class, beside the 20 to 39 of its members; the share of the others that is doubted, of theirs half.
    """
    generator = torch.Generator().manual_seed(0)
    groups = [(3000, 1.0, 0.5), *suspects]
    sizes = [size for size, _, _ in groups]
    members, judged = sizes[0], sum(sizes)
    labels = torch.zeros(judged + 2000, dtype=torch.long)
    labels[members:] = 1  # of the suspects, and of what else is doubted
    labels[-1000:] = 2  # believed
    near = []
    for size, same, doubted in groups:
        number = (torch.randint(20, 40, (size, 1), generator=generator) * same).long()
        doubtful = torch.rand(size, 64, generator=generator) < doubted
        others = torch.randint(1000, (size, 64), generator=generator) + judged + 1000 * ~doubtful
        like = torch.randint(members, (size, 64), generator=generator)
        near.append(torch.where(torch.arange(64) < number, like, others))
    near.append(torch.randint(judged, (2000, 64), generator=generator))
    believed = labels != 1
    weight = torch.zeros(len(labels))
    weight[members:judged] = 1
    found = of_a_class(labels, torch.cat(near), believed, torch.zeros_like(labels), weight)
    assert (found[weight == 0] == 1).all()
    return [float(part.mean()) for part in found[members:judged].split(sizes[1:])]


def test_both_numbers_have_to_show_a_kind_that_is_no_class():
    assert said_of((1000, 1.0, 0.5)) == [1], "as the members"
    assert said_of((1000, 0.5, 0.0)) == [1], "hard, but among what is believed"
    assert said_of((1000, 1.0, 1.0)) == [1], "among what is doubted, but as many of the class"
    assert said_of((1000, 0.5, 1.0))[0] < 0.1


def test_so_many_are_of_a_class_as_the_ranks_show():
    own, of_none = said_of((600, 1.0, 0.5), (400, 0.5, 1.0))
    assert own == pytest.approx(1, abs=0.05)
    assert of_none < 0.1
    assert said_of((700, 1.6, 0.5), (300, 0.5, 1.0)) == [1, 1], "as many as all may be of a class"


def test_few_suspects_tell_nothing():
    assert said_of((80, 0.5, 1.0)) == [1]
    labels, near = torch.arange(3).repeat(400), torch.arange(1200)[:, None] - torch.arange(1, 65)
    other, every, nobody = (labels + 1) % 3, torch.ones(1200), torch.zeros(1200)
    assert (of_a_class(labels, near % 1200, every.bool(), other, nobody) == 1).all()
    assert (of_a_class(labels, near % 1200, nobody.bool(), other, every) == 1).all(), "ranks among nobody"


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


def test_where_all_ranks_are_low_rounding_says_no_more_than_all():
    """Float32 may make the share of such ranks 1 + 2e-7, of which there is no standard error."""
    generator = torch.Generator().manual_seed(0)
    for size in range(100, 200):
        below = torch.rand(size, generator=generator) * 0.3 + 0.5
        weight = torch.rand(size, generator=generator)
        assert (_uniform(below, below + 0.2, weight, torch.tensor(100.0)) == 1).all()
