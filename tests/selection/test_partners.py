import math

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn.functional import normalize

from prism_dml.selection import cross_fit, label_model
from prism_dml.selection.candidates import ClassEvidence
from prism_dml.selection.cross_fit import judge_labels
from prism_dml.selection.mistakes import LEAST_RATE, AnyAlike, ByPair, ByPartner, Mistakes
from prism_dml.selection.partners import cost_of_partners, find_partners

CLASSES = 40


def evidence_of(classes: torch.Tensor, stands_for: torch.Tensor) -> ClassEvidence:
    count = len(classes)
    return ClassEvidence(
        classes, torch.zeros(classes.shape), stands_for, torch.zeros(count), torch.ones(count).bool()
    )


def given(
    rate: float, kind: str, each: int = 30, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings in classes, their true labels, and labels of which a share is wrong."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(CLASSES).repeat(each)
    centres = 0.35 * torch.randn(CLASSES, 128, generator=generator)
    rows = centres[truth] + torch.randn(len(truth), 128, generator=generator)
    wrong = torch.rand(len(truth), generator=generator) < rate
    shift = (
        torch.ones_like(truth)
        if kind == "pair"
        else torch.randint(1, CLASSES, truth.shape, generator=generator)
    )
    return normalize(rows, dim=1), truth, torch.where(wrong, (truth + shift) % CLASSES, truth)


def judged(rows: torch.Tensor, labels: torch.Tensor) -> cross_fit.LabelJudgement:
    return judge_labels(rows, labels, *(rows @ rows.T).fill_diagonal_(-math.inf).topk(64, dim=1))


@pytest.mark.parametrize("first", [5_000, 200])
def test_labels_that_one_other_class_is_given_are_found(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """So are they where the few that the first model is fitted to do not tell of partners."""
    monkeypatch.setattr(cross_fit, "_FIRST", first)
    rows, truth, labels = given(0.3, "pair")
    found, wrong = judged(rows, labels), labels != truth
    assert found.noise_rate == pytest.approx(float(wrong.float().mean()), abs=0.04)
    assert roc_auc_score(wrong, 1 - found.clean_probability) > 0.95
    assert (found.suggested == truth).float().mean() > 0.88
    assert isinstance(found.mistakes, ByPartner)
    next_class = (torch.arange(CLASSES) + 1) % CLASSES
    assert (found.mistakes.partners == next_class).float().mean() > 0.9
    assert found.mistakes.shares.median() == pytest.approx(0.3, abs=0.06)
    monkeypatch.setattr(label_model, "cost_of_partners", lambda *of: math.inf)
    without = judged(rows, labels)
    assert isinstance(without.mistakes, AnyAlike) and without.noise_rate < 0.15, (
        "they would be taken for hard ones"
    )
    assert (without.suggested == truth).float().mean() < 0.8


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5, 0.8])
@pytest.mark.parametrize("each", [6, 30])
def test_classes_have_no_partners_where_labels_are_right_or_any_alike(rate: float, each: int) -> None:
    rows, _, labels = given(rate, "any", each)
    assert isinstance(judged(rows, labels).mistakes, AnyAlike)


def test_a_partner_is_the_label_under_which_most_of_a_class_is_seen() -> None:
    """Not its own, nor one that stands for many, nor one of far more samples."""
    classes = torch.tensor([[0, 1, 2], [0, 2, 1], [1, 2, 0], [1, 0, 2], [2, 2, 2], [0, 3, 1]])
    stands_for = torch.tensor([[1.0, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 7], [1, 0, 0], [1, 1, 1]])
    prior = torch.tensor(
        [[0.5, 0.3, 0.2], [0.4, 0.5, 0.1], [0.2, 0.6, 0.2], [0.5, 0.1, 0.4], [1, 0, 0], [0.1, 0.8, 0.1]]
    )
    members = torch.tensor([3, 2, 1, 0])
    # Of class 0 0.3 is seen under label 1, of class 1 0.5 under label 0, of class 2 0.7 under 0 and 0.6 under 1.
    assert find_partners(prior, evidence_of(classes, stands_for), members).tolist() == [1, 0, 0, -1]
    fewer = torch.tensor([4, 2, 1, 1])  # 0 has more than three times as many as 2 has
    assert find_partners(prior, evidence_of(classes, stands_for), fewer).tolist() == [1, 0, 1, -1]


def test_to_name_partners_costs_the_more_the_more_there_are_to_name() -> None:
    assert cost_of_partners(500, 5) == pytest.approx(5 * (math.log(4) + math.log(100) / 2))
    assert cost_of_partners(500, 50) / 50 > cost_of_partners(50, 5) / 5
    assert cost_of_partners(3, 2) > 0 and cost_of_partners(1, 1) > 0


def table(mistakes: Mistakes, count: int) -> torch.Tensor:
    """T, (C, C), as `seen` tells it."""
    rows = []
    for label in range(count):
        order = torch.cat([torch.tensor([label]), torch.tensor([k for k in range(count) if k != label])])
        seen = mistakes.seen(order[None], torch.tensor([[label]]), count)[0]
        rows.append(torch.zeros(count).index_copy_(0, order, seen))
    return torch.stack(rows, dim=1)


PARTNERS = ByPartner(0.1, torch.tensor([2, -1, 0, 2]), torch.tensor([0.3, 0.0, 0.2, 0.4]))


@pytest.mark.parametrize("mistakes", [AnyAlike(0.4), AnyAlike(0.0), AnyAlike(1.0), PARTNERS], ids=str)
def test_what_a_class_is_given_sums_to_one(mistakes: Mistakes) -> None:
    shares = table(mistakes, 4)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(4))
    assert (shares > 0).all() or mistakes == AnyAlike(0.0)
    if mistakes is PARTNERS:
        expected = torch.tensor([0.7 * 0.9, 0.7 * 0.1 / 3, 0.7 * 0.1 / 3 + 0.3, 0.7 * 0.1 / 3])
        torch.testing.assert_close(shares[0], expected)


@pytest.mark.parametrize(
    "mistakes", [AnyAlike(0.4), PARTNERS, ByPair(torch.rand(4, 4).softmax(dim=1))], ids=type
)
def test_the_probability_of_a_label_is_that_of_all_classes(mistakes: Mistakes) -> None:
    chances = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).softmax(dim=1)
    given = torch.tensor([[0], [1], [2], [3], [2]])
    expected = (chances @ table(mistakes, 4)).gather(1, given)
    torch.testing.assert_close(mistakes.label(chances, given), expected)


@pytest.mark.parametrize("mistakes", [PARTNERS, ByPair(table(PARTNERS, 4))], ids=type)
def test_classes_that_are_absent_make_no_mistakes(mistakes: Mistakes) -> None:
    present = torch.tensor([1, 2, 4, 5])
    shares = table(mistakes.among(present, 6), 6)
    inside = shares[present[:, None], present]
    torch.testing.assert_close(inside.argsort(dim=1)[:, -2:], table(mistakes, 4).argsort(dim=1)[:, -2:])
    assert shares[[0, 3], [0, 3]].min() > 0.89 and (shares >= LEAST_RATE * 0.99).all()
    after = torch.full((4, 8), 0.125)  # of a network that knows of two classes more
    assert (mistakes.among(present, 6).label(after, present[:, None]) > 0).all()
