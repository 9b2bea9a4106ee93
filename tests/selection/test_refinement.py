import math

import pytest
import torch
from scipy.optimize import minimize
from sklearn.metrics import roc_auc_score
from torch.nn.functional import normalize

from prism_dml.selection import refinement
from prism_dml.selection.candidates import ClassEvidence
from prism_dml.selection.cross_fit import judge_labels
from prism_dml.selection.discriminant import ClassBalls, whiten
from prism_dml.selection.draw import deal
from prism_dml.selection.noise_parameters import NoiseParameters
from prism_dml.selection.refinement import can_refine, refine

CLASSES, EACH, FOLDS, SLOPE = 6, 60, 3, 0.5


def stretched(seed: int = 0, each: int = EACH) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples of classes that are each stretched in a way of its own, and so no balls; and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(CLASSES).repeat(each)
    centres = 0.5 * torch.randn(CLASSES, 12, generator=generator)
    widths = torch.randn(CLASSES, 12, generator=generator).exp()
    return centres[labels] + widths[labels] * torch.randn(len(labels), 12, generator=generator), labels


def shares(rate: float) -> torch.Tensor:
    """Any wrong label is given alike."""
    return torch.full((CLASSES, CLASSES), rate / (CLASSES - 1)).fill_diagonal_(1 - rate)


def parts(rows: torch.Tensor, labels: torch.Tensor, folds: torch.Tensor):
    """What is refined: the evidence on all classes, the given one first, and what it is made of."""
    own = torch.arange(len(labels))
    whitened = whiten(rows, labels, torch.ones(len(labels)), own)
    trusts = [(folds != fold).float() for fold in range(FOLDS)]
    classes = (labels[:, None] + torch.arange(CLASSES)) % CLASSES
    density = torch.empty(classes.shape)
    for fold, trust in enumerate(trusts):
        there = folds == fold
        density[there] = ClassBalls(whitened, labels, trust).density(own[there], classes[there])
    evidence = ClassEvidence(
        classes, density, torch.ones(classes.shape), torch.zeros(len(labels)), torch.ones(len(labels)).bool()
    )
    return evidence, whitened, trusts


def likelihood(evidence: ClassEvidence, rate: float) -> float:
    """Mean logarithm of the probability of the given labels."""
    chances = (SLOPE * evidence.density).softmax(dim=1)
    return float((chances * evidence.of_pairs(shares(rate))).sum(dim=1).log().mean())


def test_labels_that_have_no_say_become_more_likely():
    rows, labels = stretched()
    folds = deal(labels, FOLDS)
    evidence, whitened, trusts = parts(rows, labels, folds)
    refined = refine(evidence, whitened, labels, trusts, folds, SLOPE, shares(0.01))
    assert likelihood(refined, 0.01) > likelihood(evidence, 0.01) + 0.05
    assert torch.equal(refined.classes, evidence.classes)


def test_no_label_has_a_say_on_its_own_fold():
    rows, labels = stretched()
    folds = deal(labels, FOLDS)
    evidence, whitened, trusts = parts(rows, labels, folds)
    moved = refine(evidence, whitened, labels, trusts, folds, SLOPE, shares(0.1)).density - evidence.density
    own = folds == 0
    other = torch.where(own, (labels + 1) % CLASSES, labels)
    again = refine(evidence, whitened, other, trusts, folds, SLOPE, shares(0.1)).density - evidence.density
    torch.testing.assert_close(again[own], moved[own])
    assert (again[~own] - moved[~own]).abs().max() > 1e-3


def test_the_means_are_moved_to_the_maximum_of_likelihood_and_prior():
    rows, labels = stretched(each=20)
    folds = deal(labels, FOLDS)
    _, whitened, trusts = parts(rows, labels, folds)
    balls, asked = ClassBalls(whitened, labels, trusts[0]), (folds != 0).nonzero().squeeze(1)
    found = SLOPE * refinement._moved(balls, asked, SLOPE, shares(0.2))
    x = whitened.rows[asked].double()
    before = SLOPE * balls.density(asked).double() + balls.mass.double().log()
    lengths = [
        max(float(mean @ mean) - x.shape[1] / (float(mass) + 0.5), 0.0)
        for mean, mass in zip(balls.means.double(), balls.mass, strict=True)
    ]
    variance = SLOPE**2 * sum(lengths) / CLASSES / x.shape[1]

    def loss(flat) -> tuple[float, object]:
        v = torch.tensor(flat, dtype=torch.float64).view(x.shape[1], CLASSES).requires_grad_(True)
        total = (v**2).sum() / (2 * variance)
        for row, logits, label in zip(x, before, labels[asked], strict=True):
            chances = (logits + row @ v).softmax(dim=0)
            total = total - torch.log(chances @ shares(0.2)[:, label].double())
        total.backward()
        return float(total.detach()) / len(x), v.grad.flatten().numpy() / len(x)

    best = minimize(loss, torch.zeros(x.shape[1] * CLASSES).numpy(), jac=True, method="L-BFGS-B")
    start, reached = loss(torch.zeros_like(found).numpy().ravel())[0], loss(found.numpy().ravel())[0]
    assert start - reached > 0.97 * (start - best.fun) > 0


def test_a_class_is_not_moved_for_being_rare():
    generator = torch.Generator().manual_seed(2)
    labels = torch.repeat_interleave(torch.arange(CLASSES), torch.tensor([400, 400, 400, 400, 30, 30]))
    rows = 0.6 * torch.randn(CLASSES, 12, generator=generator)[labels] + torch.randn(
        len(labels), 12, generator=generator
    )
    folds = deal(labels, FOLDS)
    evidence, whitened, trusts = parts(rows, labels, folds)
    refined = refine(evidence, whitened, labels, trusts, folds, 1.0, shares(0.01))
    chances = [(found.density[labels > 3]).softmax(dim=1)[:, 0].mean() for found in (evidence, refined)]
    assert chances[1] > chances[0] - 0.01


def test_labels_by_chance_move_nothing():
    rows, labels = stretched()
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    folds = deal(labels, FOLDS)
    evidence, whitened, trusts = parts(torch.randn_like(rows), labels, folds)
    moved = refine(evidence, whitened, labels, trusts, folds, SLOPE, shares(0.5)).density - evidence.density
    assert moved.abs().mean() < 0.05 * evidence.density.std()


@pytest.mark.parametrize(
    ("samples", "classes", "enough"),
    [(500, 10, True), (499, 10, False), (10**6, 500, True), (10**8, 1000, False), (2, 1, False)],
)
def test_there_must_be_enough_samples_for_each_class_and_not_too_many_classes(samples, classes, enough):
    assert can_refine(samples, classes) is enough


def kinds(apart: float, each: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Samples of twelve classes that are balls but for the directions in which some are wide; given labels; wrong."""
    generator = torch.Generator().manual_seed(3)
    truth = torch.arange(12).repeat(each)
    widths = (apart * torch.randn(12, 64, generator=generator)).exp()
    rows = 0.4 * torch.randn(12, 64, generator=generator)[truth]
    rows = rows + widths[truth] * torch.randn(len(truth), 64, generator=generator)
    wrong = torch.rand(len(truth), generator=generator) < 0.3
    shift = torch.randint(1, 12, truth.shape, generator=generator)
    return normalize(rows, dim=1), torch.where(wrong, (truth + shift) % 12, truth), wrong


def both(rows: torch.Tensor, labels: torch.Tensor, monkeypatch):
    """Judged with and without refinement."""
    judged = judge_labels(rows, labels, *nearest(rows))
    monkeypatch.setattr(refinement, "_EACH", 10**9)
    return judged, judge_labels(rows, labels, *nearest(rows))


def test_classes_that_are_no_balls_are_judged_better(monkeypatch):
    rows, labels, wrong = kinds(0.7, 150)
    judged, before = both(rows, labels, monkeypatch)
    aurocs = [roc_auc_score(~wrong, found.chances[:, 0]) for found in (judged, before)]
    assert aurocs[0] > aurocs[1] + 0.002


def test_classes_that_are_balls_are_judged_by_their_means(monkeypatch):
    rows, labels, _ = kinds(0.0, 60)
    judged, before = both(rows, labels, monkeypatch)
    torch.testing.assert_close(judged.chances, before.chances, rtol=0, atol=0)


def nearest(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple((rows @ rows.T).fill_diagonal_(-math.inf).topk(32, dim=1))


@pytest.mark.parametrize("kind", ["alike", "flips", "partners"])
def test_pairs_are_what_is_seen_of_each_class_and_label(kind):
    zeros = torch.zeros(CLASSES, dtype=torch.float64)
    parameters = NoiseParameters(zeros[:2], torch.tensor([0.1, -1.0]).double(), torch.randn(CLASSES).double())
    if kind == "flips":
        parameters = parameters.at([*parameters.free()]).with_flips()
        parameters.flips.copy_(torch.randn(CLASSES, CLASSES))
    if kind == "partners":
        parameters = parameters.with_partners(torch.tensor([1, 2, -1, 0, 5, 4]))
    pairs = parameters.pairs()
    torch.testing.assert_close(pairs.sum(dim=1), torch.ones(CLASSES).double())
    labels = torch.arange(CLASSES)
    classes = (labels[:, None] + torch.arange(CLASSES)) % CLASSES
    evidence = ClassEvidence(
        classes,
        torch.zeros(classes.shape),
        torch.ones(classes.shape),
        torch.zeros(CLASSES),
        torch.ones(CLASSES).bool(),
    )
    torch.testing.assert_close(parameters.seen(evidence), pairs[classes, labels[:, None]])
