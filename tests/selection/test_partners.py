import math

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn.functional import normalize

from prism_dml import find_label_issues
from prism_dml.methods.second_opinion import given_the_label
from prism_dml.selection import cross_fit, label_model
from prism_dml.selection.candidates import ClassEvidence, find_candidates, weigh_candidates
from prism_dml.selection.cross_fit import judge_labels
from prism_dml.selection.discriminant import whiten
from prism_dml.selection.mistakes import AnyAlike, ByPair, ByPartner, Mistakes
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


def alike(stretched: bool, each: int, apart: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of classes of which two each are nearly the same, and their right labels."""
    generator = torch.Generator().manual_seed(3)
    truth = torch.arange(CLASSES).repeat(each)
    centres = 0.35 * torch.randn(CLASSES // 2, 128, generator=generator)[torch.arange(CLASSES) // 2]
    centres = centres + apart * torch.randn(CLASSES, 128, generator=generator)
    spread = torch.randn(len(truth), 128, generator=generator)
    if stretched:
        spread = spread * torch.logspace(0.5, -0.7, 128)
    return normalize(centres[truth] + spread, dim=1), truth


def judged(rows: torch.Tensor, labels: torch.Tensor) -> cross_fit.LabelJudgement:
    return judge_labels(rows, labels, *(rows @ rows.T).fill_diagonal_(-math.inf).topk(64, dim=1))


def evidence_for(rows: torch.Tensor, labels: torch.Tensor) -> ClassEvidence:
    """By everyone's say alike."""
    everyone, every = torch.ones(len(labels)), torch.arange(len(labels))
    near = (rows @ rows.T).fill_diagonal_(-math.inf).topk(64, dim=1)
    whitened = whiten(rows, labels, everyone, every)
    return weigh_candidates(find_candidates(labels, *near), whitened, labels, everyone, every)


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
    assert (found.mistakes.partners == next_class).float().mean() > 0.85
    assert found.mistakes.shares.median() == pytest.approx(0.3, abs=0.06)
    monkeypatch.setattr(label_model, "cost_of_partners", lambda *of: math.inf)
    without = judged(rows, labels)
    assert isinstance(without.mistakes, AnyAlike)
    assert without.noise_rate < found.noise_rate - 0.1, "they would be taken for hard ones"
    assert (without.suggested == truth).float().mean() < 0.8


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5, 0.8])
@pytest.mark.parametrize("each", [6, 30])
def test_classes_have_no_partners_where_labels_are_right_or_any_alike(rate: float, each: int) -> None:
    rows, _, labels = given(rate, "any", each)
    assert isinstance(judged(rows, labels).mistakes, AnyAlike)


@pytest.mark.parametrize("stretched, apart", [(False, 0.0), (False, 0.06), (True, 0.07)])
@pytest.mark.parametrize("each", [20, 60])
def test_classes_that_look_alike_are_not_taken_for_exchanged(
    stretched: bool, apart: float, each: int
) -> None:
    rows, truth = alike(stretched, each, apart)
    found = judged(rows, truth)
    assert isinstance(found.mistakes, AnyAlike)
    assert found.noise_rate < 0.02 and (found.clean_probability < 0.5).float().mean() < 0.01
    if apart == 0:
        assert len(find_label_issues(rows, truth).attrs["ambiguous_classes"]) > CLASSES // 3


def test_a_partner_is_the_label_under_which_most_of_a_class_is_seen() -> None:
    """Not its own, nor one that stands for many, nor one of far more samples; and two are never each other's."""
    classes = torch.tensor([[0, 1, 2], [0, 2, 1], [1, 2, 0], [1, 0, 2], [2, 2, 1], [0, 3, 1]])
    stands_for = torch.tensor([[1.0, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 7], [1, 0, 1], [1, 1, 1]])
    prior = torch.tensor(
        [[0.5, 0.3, 0.2], [0.4, 0.5, 0.1], [0.2, 0.6, 0.2], [0.5, 0.1, 0.4], [0.4, 0.0, 0.6], [0.1, 0.8, 0.1]]
    )
    members = torch.tensor([3, 2, 1, 0])
    # Of class 0 0.3 is seen under label 1, of class 1 0.5 under label 2, of class 2 0.7 under label 0 and 0.6 under 1.
    assert find_partners(prior, evidence_of(classes, stands_for), members).tolist() == [1, 2, 0, -1]
    # Where 0 has more than three times as many as 2 has, 1 and 2 would be each other's.
    for members, expected in (([4, 2, 1, 1], [1, 2, -1, -1]), ([4, 1, 1, 1], [1, -1, -1, -1])):
        found = find_partners(prior, evidence_of(classes, stands_for), torch.tensor(members))
        assert found.tolist() == expected, "of a part twice as large as the other way round, or of none"


def test_to_name_partners_costs_the_more_the_more_there_are_to_name() -> None:
    assert cost_of_partners(500, 5) == pytest.approx(5 * (math.log(4) + math.log(100) / 2))
    assert cost_of_partners(500, 50) / 50 > cost_of_partners(50, 5) / 5
    assert cost_of_partners(3, 2) > 0 and cost_of_partners(1, 1) > 0


def table(mistakes: Mistakes, count: int) -> torch.Tensor:
    """T, (C, C), as `seen` tells it."""
    rows = []
    for label in range(count):
        order = torch.cat([torch.tensor([label]), torch.tensor([k for k in range(count) if k != label])])
        seen = mistakes.seen(order[None], count)[0]
        rows.append(torch.zeros(count).index_copy_(0, order, seen))
    return torch.stack(rows, dim=1)


PAIRS = ByPair(torch.rand(4, 4, generator=torch.Generator().manual_seed(0)).softmax(dim=1))
PARTNERS = ByPartner(0.1, torch.tensor([2, -1, 0, 2]), torch.tensor([0.3, 0.0, 0.2, 0.4]))


@pytest.mark.parametrize("mistakes", [AnyAlike(0.4), AnyAlike(0.0), AnyAlike(1.0), PARTNERS], ids=str)
def test_what_a_class_is_given_sums_to_one(mistakes: Mistakes) -> None:
    shares = table(mistakes, 4)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(4))
    assert (shares > 0).all()
    if mistakes is PARTNERS:
        expected = torch.tensor([0.7 * 0.9, 0.7 * 0.1 / 3, 0.7 * 0.1 / 3 + 0.3, 0.7 * 0.1 / 3])
        torch.testing.assert_close(shares[0], expected)


@pytest.mark.parametrize("mistakes", [AnyAlike(0.4), PARTNERS, PAIRS], ids=type)
def test_the_probability_of_a_label_is_that_of_all_classes(mistakes: Mistakes) -> None:
    chances = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).softmax(dim=1)
    given = torch.tensor([[0], [1], [2], [3], [2]])
    expected = (chances @ table(mistakes, 4)).gather(1, given)
    torch.testing.assert_close(mistakes.label(chances, given), expected)


@pytest.mark.parametrize("mistakes", [PARTNERS, PAIRS], ids=type)
def test_of_absent_classes_none_has_a_partner(mistakes: Mistakes) -> None:
    present, own = torch.tensor([1, 2, 4, 5]), torch.tensor([[0], [1], [2], [3], [2]])
    among = mistakes.among(present, 6)
    chances = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).softmax(dim=1)
    whole = torch.zeros(5, 6).index_copy_(1, present, chances)
    shares = table(among, 6)
    torch.testing.assert_close(among.label(whole, present[own]), (whole @ shares).gather(1, present[own]))
    if mistakes is PAIRS:
        torch.testing.assert_close(shares[present[:, None], present], PAIRS.shares)
        assert shares[0, 0] == shares[3, 3] == 1
    else:
        assert among.partners.tolist() == [-1, 4, -1, -1, 1, 4]
        torch.testing.assert_close(among.shares, torch.tensor([0.0, 0.3, 0.0, 0.0, 0.2, 0.4]))


@pytest.mark.parametrize("mistakes", [AnyAlike(0.3), PARTNERS], ids=type)
def test_of_classes_that_were_not_judged_a_label_is_as_of_any(mistakes: Mistakes) -> None:
    """What a network says of eight classes, four of which no label is of, sums to one once a label is seen."""
    logits = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))
    others = torch.tensor([[k for k in range(8) if k != label] for label in (0, 2, 3)])
    classes = torch.cat([torch.tensor([[0], [2], [3]]), others], dim=1)
    if mistakes is PARTNERS:
        mistakes = PARTNERS.among(torch.arange(4), 8)
    torch.testing.assert_close(given_the_label(logits, classes, mistakes).sum(dim=1), torch.ones(3))
    assert given_the_label(1000 * logits, classes, mistakes).isfinite().all()


def test_where_partners_are_found_the_error_of_the_rate_knows_of_them() -> None:
    rows, _, labels = given(0.3, "pair")
    model, evidence = label_model.LabelModel(CLASSES, 0.5), evidence_for(rows, labels)
    model.fit(evidence)
    assert model.partnered
    with_shares = model.rate_error(evidence)
    common = model.parameters.common()
    assert len(common) == 3 and torch.equal(
        model.parameters.with_common(common).shares, model.parameters.shares
    )
    moved = model.parameters.with_common(common + torch.tensor([0, 0, 1.0]))
    assert (moved.given_to_partner() >= model.parameters.given_to_partner()).all()
    model.parameters = model.parameters.with_partners(None)
    assert with_shares > model.rate_error(evidence) > 0
