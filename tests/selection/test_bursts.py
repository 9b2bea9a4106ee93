"""Photographs taken together: nearly alike, and under one label."""

import math

import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score
from torch import Tensor
from torch.nn.functional import normalize

from prism_dml import find_label_issues
from prism_dml.methods.beliefs import judge
from prism_dml.selection.bursts import find_bursts, judge_by_bursts
from prism_dml.selection.cross_fit import judge_labels

CLASSES = 8


def nearest(rows: Tensor) -> tuple[Tensor, Tensor]:
    found = (rows @ rows.T).fill_diagonal_(-math.inf).topk(min(64, len(rows) - 1), dim=1)
    return found.values, found.indices


def taken(
    times: int, things: int = 12, apart: float = 0.3, wrong: float = 0.3, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Photographs of so many things of each class, so often each: embeddings, labels of things, truth, thing; (N,)."""
    generator = torch.Generator().manual_seed(seed)
    centres = 4 * normalize(torch.randn(CLASSES, 64, generator=generator), dim=1)
    truth = torch.arange(CLASSES).repeat_interleave(things)
    seen = centres[truth] + torch.randn(len(truth), 64, generator=generator)
    labels = mislabelled(truth, wrong, generator)
    thing = torch.arange(len(truth)).repeat_interleave(times)
    thing = thing[torch.randperm(len(thing), generator=generator)]
    rows = seen[thing] + apart * torch.randn(len(thing), 64, generator=generator)
    return normalize(rows, dim=1), labels[thing], truth[thing], thing


def mislabelled(truth: Tensor, wrong: float, generator: torch.Generator) -> Tensor:
    """Any other label is given by mistake with this probability."""
    others = (truth + torch.randint(1, CLASSES, truth.shape, generator=generator)) % CLASSES
    return torch.where(torch.rand(truth.shape, generator=generator) < wrong, others, truth)


def test_photographs_of_one_thing_are_found_to_be_a_burst():
    rows, labels, _, thing = taken(times=5, things=30)
    burst = find_bursts(rows, labels, *nearest(rows))
    assert burst is not None
    pairs = torch.unique(torch.stack([burst, thing]), dim=1)
    assert pairs.shape[1] == len(torch.unique(thing)) == int(burst.max()) + 1


def test_of_a_burst_is_what_has_its_label():
    rows, labels, _, thing = taken(times=5, things=60)
    odd = int((thing == 0).nonzero()[0])
    labels[odd] = (labels[odd] + 1) % CLASSES
    burst = find_bursts(rows, labels, *nearest(rows))
    assert burst is not None
    assert (burst == burst[odd]).sum() == 1


@pytest.mark.parametrize(("times", "wrong"), [(5, 0.1), (5, 0.3), (20, 0.01), (20, 0.02)])
def test_where_each_photograph_was_labelled_by_itself_none_counts_less(times: int, wrong: float):
    rows, _, truth, _ = taken(times, things=30)
    labels = mislabelled(truth, wrong, torch.Generator().manual_seed(1))
    near = nearest(rows)
    assert find_bursts(rows, labels, *near) is None
    found, expected = judge_by_bursts(rows, labels, *near, nearest), judge_labels(rows, labels, *near)
    torch.testing.assert_close(found.chances, expected.chances, rtol=0, atol=0)


@pytest.mark.parametrize(("dimensions", "drawn"), [(2, 0.2), (4, 0.3), (6, 0.4), (8, 0.4)])
def test_what_a_network_has_drawn_together_by_its_labels_is_no_burst(dimensions: int, drawn: float):
    """Of each class what has one label lies together, and nothing is nearly alike."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(CLASSES).repeat_interleave(150)
    labels = mislabelled(truth, 0.4, generator)
    centres = normalize(torch.randn(CLASSES, 64, generator=generator), dim=1)
    ways = torch.randn(CLASSES, dimensions, 64, generator=generator) / (8 * dimensions**0.5)
    spread = torch.einsum("nk,nkd->nd", torch.randn(len(truth), dimensions, generator=generator), ways[truth])
    noise = torch.randn(len(truth), 64, generator=generator) / 80
    rows = normalize(centres[truth] + drawn * centres[labels] + spread + noise, dim=1)
    near, neighbours = nearest(rows)
    closest = near[:, 0].argsort(descending=True)[:300]
    assert (labels[neighbours[closest, 0]] == labels[closest]).float().mean() > 0.95
    assert find_bursts(rows, labels, near, neighbours) is None


def test_the_order_of_the_samples_does_not_matter():
    rows, labels, _, _ = taken(times=5, things=30)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
    burst, again = (
        find_bursts(rows[o], labels[o], *nearest(rows[o])) for o in (torch.arange(len(rows)), order)
    )
    assert burst is not None and again is not None
    assert torch.unique(torch.stack([burst[order], again]), dim=1).shape[1] == int(burst.max()) + 1


def test_samples_that_are_not_nearly_alike_are_no_bursts():
    rows, labels, _, _ = taken(times=1, things=150, wrong=0.0)
    assert find_bursts(rows, labels, *nearest(rows)) is None


@pytest.mark.parametrize(("pairs", "told"), [(10, False), (60, True)])
def test_a_few_bursts_tell_nothing(pairs: int, told: bool):
    rows, labels, _, thing = taken(times=2, things=60)
    first = torch.full((len(rows),), len(rows)).scatter_reduce(0, thing, torch.arange(len(rows)), "amin")
    kept = (thing < pairs) | (first[thing] == torch.arange(len(rows)))  # all others once
    found = find_bursts(rows[kept], labels[kept], *nearest(rows[kept]))
    assert (found is not None) is told


def test_a_burst_that_is_more_than_a_third_of_its_class_counts_as_several():
    rows, labels, _, thing = taken(times=12, things=30, wrong=0.0)
    few = torch.where(labels == 0, thing < 2, labels > 0)  # class 0 is two bursts of twelve
    rows, labels = rows[few], labels[few]
    burst = find_bursts(rows, labels, *nearest(rows))
    assert burst is not None
    sizes = torch.bincount(burst)[burst]
    assert sorted(sizes[labels == 0].unique().tolist()) == [4, 8]
    assert (sizes[labels > 0] == 12).all()


@pytest.mark.parametrize("seed", range(3))
def test_where_many_classes_are_little_else_than_one_thing_all_is_as_it_was(seed: int):
    rows, labels, _, thing = taken(times=10, things=6, wrong=0.0, seed=seed)
    few = (labels < 4) | (thing % 6 < 2)
    rows, labels = rows[few], labels[few]
    near = nearest(rows)
    assert find_bursts(rows, labels, *near) is None
    assert judge_by_bursts(rows, labels, *near, nearest).noise_rate < 0.01


@pytest.mark.parametrize("seed", range(3))
def test_a_wrong_label_that_a_burst_shares_is_found(seed: int):
    rows, labels, truth, _ = taken(times=20, things=15, seed=seed)
    near, wrong = nearest(rows), labels != truth
    found, before = judge_by_bursts(rows, labels, *near, nearest), judge_labels(rows, labels, *near)
    assert roc_auc_score(~wrong, found.clean_probability) > 0.95
    assert f1_score(wrong, found.clean_probability < 0.5) > 0.8
    assert f1_score(wrong, before.clean_probability < 0.5, zero_division=0) < 0.5
    assert found.noise_rate == pytest.approx(float(wrong.float().mean()), abs=0.1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("things", [6, 15])
def test_right_labels_of_bursts_are_believed(things: int, seed: int):
    rows, labels, _, _ = taken(times=20, things=things, wrong=0.0, seed=seed)
    near = nearest(rows)
    assert find_bursts(rows, labels, *near) is not None
    found = judge_by_bursts(rows, labels, *near, nearest)
    assert found.noise_rate < 0.02
    assert found.rate_error < 0.05


def test_the_rate_of_unequal_bursts_is_known_less_well():
    """Of things of which every eighth is photographed 15 times the rate varies by twice as much."""
    rows, labels, _, thing = taken(times=15, things=30)
    first = torch.cat(
        [(thing == k).nonzero()[: 15 if k % 8 == 0 else 1, 0] for k in range(int(thing.max()) + 1)]
    )
    rows, labels = rows[first], labels[first]
    found = judge_by_bursts(rows, labels, *nearest(rows), nearest)
    of_things = find_bursts(rows, labels, *nearest(rows))
    size = torch.bincount(of_things).double()
    means = normalize(torch.zeros(len(size), rows.shape[1]).index_add_(0, of_things, rows), dim=1)
    alone = judge_labels(
        means, labels.new_zeros(len(size)).index_copy_(0, of_things, labels), *nearest(means)
    )
    # Var of the mean over samples of things that are each wrong by chance: sum of squared sizes, for their number.
    factor = float((size.square().sum() / size.sum() ** 2 * len(size)).sqrt())
    assert factor > 1.9 and found.rate_error == pytest.approx(factor * alone.rate_error)


def test_a_burst_is_judged_alike_and_each_of_it_has_its_own_neighbours():
    rows, labels, _, thing = taken(times=5, things=30)
    near, neighbours = nearest(rows)
    found = judge_by_bursts(rows, labels, near, neighbours, nearest)
    first = torch.full((int(thing.max()) + 1,), len(rows)).scatter_reduce(
        0, thing, torch.arange(len(rows)), "amin"
    )[thing]
    for values in (found.chances, found.classes, found.suggested, found.nowhere, found.other_kind):
        assert torch.equal(values, values[first])
    assert torch.equal(found.classes[:, 0], labels)
    assert torch.equal(found.candidates.neighbours, neighbours)


def test_an_audit_counts_bursts_as_one():
    rows, labels, truth, _ = taken(times=20, things=15)
    found = find_label_issues(rows, labels)
    wrong = (labels != truth).numpy()
    assert f1_score(wrong, found.is_label_issue) > 0.8
    low, high = found.attrs["noise_rate_interval"]
    assert low < wrong.mean() < high


def test_single_photographs_among_bursts_are_not_out_of_the_way_for_being_single():
    rows, labels, truth, thing = taken(times=20, things=40, wrong=0.2)
    first = torch.full((len(rows),), len(rows)).scatter_reduce(0, thing, torch.arange(len(rows)), "amin")
    kept = (thing % 10 < 3) | (first[thing] == torch.arange(len(rows)))
    rows, labels, truth, single = rows[kept], labels[kept], truth[kept], (thing % 10 >= 3)[kept]
    found = find_label_issues(rows, labels)
    wrong = found[((labels != truth) & single).numpy()]
    assert (wrong.issue == "wrong label").mean() > 0.9


def test_training_counts_bursts_as_one():
    rows, labels, truth, _ = taken(times=20, things=15)
    judged, wrong = judge(rows, labels), labels != truth
    assert f1_score(wrong, judged.clean < 0.5) > 0.8
    assert judged.rate == pytest.approx(float(wrong.float().mean()), abs=0.1)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_a_few_samples_that_are_all_one(count: int):
    rows = normalize(torch.ones(count, 4), dim=1)
    labels = torch.arange(count) % 2
    assert find_bursts(rows, labels, *nearest(rows)) is None
    assert len(judge_by_bursts(rows, labels, *nearest(rows), nearest).suggested) == count
