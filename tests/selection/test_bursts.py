"""Photographs taken together: nearly alike, and under one label."""

import math

import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score
from torch import Tensor
from torch.nn.functional import normalize

from prism_dml import find_label_issues
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


@pytest.mark.parametrize("wrong", [0.1, 0.3])
def test_where_each_photograph_was_labelled_by_itself_none_counts_less(wrong: float):
    rows, _, truth, _ = taken(times=5, things=30)
    labels = mislabelled(truth, wrong, torch.Generator().manual_seed(1))
    near = nearest(rows)
    assert find_bursts(rows, labels, *near) is None
    found, expected = judge_by_bursts(rows, labels, *near, nearest), judge_labels(rows, labels, *near)
    torch.testing.assert_close(found.chances, expected.chances, rtol=0, atol=0)


def test_samples_that_are_not_nearly_alike_are_no_bursts():
    rows, labels, _, _ = taken(times=1, things=150, wrong=0.0)
    assert find_bursts(rows, labels, *nearest(rows)) is None


def test_a_burst_that_is_more_than_a_third_of_its_class_is_what_the_class_is():
    rows, labels, _, thing = taken(times=5, things=30, wrong=0.0)
    # class 0 is two bursts, and class 1 three
    few = torch.where(labels == 0, thing < 2, (labels > 1) | (thing - 30 < 3))
    rows, labels, thing = rows[few], labels[few], thing[few]
    burst = find_bursts(rows, labels, *nearest(rows))
    assert burst is not None
    sizes = torch.bincount(burst)[burst]
    assert (sizes[labels == 0] == 1).all()
    assert (sizes[labels > 0] == 5).all()


@pytest.mark.parametrize("seed", range(3))
def test_a_wrong_label_that_a_burst_shares_is_found(seed: int):
    rows, labels, truth, _ = taken(times=20, things=15, seed=seed)
    near, wrong = nearest(rows), labels != truth
    found, before = judge_by_bursts(rows, labels, *near, nearest), judge_labels(rows, labels, *near)
    assert roc_auc_score(~wrong, found.clean_probability) > 0.95
    assert f1_score(wrong, found.clean_probability < 0.5) > 0.8
    assert f1_score(wrong, before.clean_probability < 0.5, zero_division=0) < 0.5
    assert found.noise_rate == pytest.approx(float(wrong.float().mean()), abs=0.1)


def test_right_labels_of_bursts_are_believed():
    rows, labels, _, _ = taken(times=20, things=15, wrong=0.0)
    near = nearest(rows)
    assert find_bursts(rows, labels, *near) is not None
    found = judge_by_bursts(rows, labels, *near, nearest)
    assert found.noise_rate < 0.02
    assert found.rate_error < 0.05


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


@pytest.mark.parametrize("count", [2, 3, 7])
def test_a_few_samples_that_are_all_one(count: int):
    rows = normalize(torch.ones(count, 4), dim=1)
    labels = torch.arange(count) % 2
    assert find_bursts(rows, labels, *nearest(rows)) is None
    assert len(judge_by_bursts(rows, labels, *nearest(rows), nearest).suggested) == count
