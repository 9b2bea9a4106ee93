import math
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import roc_auc_score

from prism_dml.selection import candidates as candidate_classes
from prism_dml.selection import cross_fit, label_model
from prism_dml.selection.candidates import DRAWN, find_candidates, weigh_candidates
from prism_dml.selection.confident_joint import confident_joint
from prism_dml.selection.cross_fit import FOLDS, judge_labels, vote_odds
from prism_dml.selection.discriminant import ClassBalls, Whitened, leading, whiten, within_classes
from prism_dml.selection.draw import deal, some
from prism_dml.selection.label_model import LabelModel
from prism_dml.selection.mistakes import AnyAlike
from prism_dml.selection.posterior import Posterior

CPU = torch.device("cpu")


@pytest.fixture
def sample():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(6, (80,), generator=generator)
    embeddings = torch.nn.functional.normalize(
        torch.randn(80, 5, generator=generator) + labels[:, None], dim=1
    )
    trust = torch.rand(80, generator=generator)
    cosines = (embeddings @ embeddings.T).fill_diagonal_(-math.inf)
    similarities, neighbours = cosines.topk(12, dim=1)
    return embeddings, labels, trust, similarities, neighbours


def test_whitened_classes_are_round():
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(3).repeat(4000)
    stretch = torch.tensor([[2.0, 0, 0], [1, 1.0, 0], [0, 0, 1]])
    embeddings = torch.randn(12_000, 3, generator=generator) @ stretch + 3 * labels[:, None]
    white = whiten(embeddings, labels, torch.ones(12_000), torch.arange(12_000)).rows
    assert white.mean(dim=0).abs().max() < 1e-3
    for part in (white[labels == k] for k in range(3)):
        variances = torch.linalg.eigvalsh(part.T.cov())
        assert variances.min() > 0.6 and variances.max() < 1.2  # a tenth is shrunk towards a ball


def as_they_are(rows, labels):
    """Rows that are compared as they are."""
    return Whitened(rows, torch.zeros(int(labels.max()) + 1, rows.shape[1]), None)


def test_density_is_that_without_the_sample_itself(sample):
    rows, labels, trust, _, _ = sample
    whitened = whiten(
        rows, labels, torch.rand(80, generator=torch.Generator().manual_seed(2)), torch.arange(80)
    )
    balls, every = ClassBalls(whitened, labels, trust), torch.arange(80)
    density = balls.density(every)
    classes = torch.stack([labels, (labels + 1) % 6, (labels + 4) % 6], dim=1)
    listed = balls.density(every, classes)
    torch.testing.assert_close(listed, density.gather(1, classes), atol=1e-5, rtol=1e-5)
    x = whitened.rows
    for i in range(0, 80, 7):
        off = x[i] - whitened.centres[labels[i]]
        for k in range(6):
            fellows = (labels == k) & (every != i)
            members = trust[fellows].sum() + 0.5
            mean = (x[fellows] * trust[fellows, None]).sum(dim=0) / members
            expected = x[i] @ mean - ((mean @ mean) - 5 / members).clamp(min=0) / 2
            expected -= whitened.own[i] / 2 * ((off @ (x[i] - mean)) ** 2 - (off @ off) ** 2)
            torch.testing.assert_close(density[i, k], expected, atol=1e-4, rtol=1e-4)


def test_distances_are_those_by_the_spread_without_the_sample_itself(sample):
    rows, labels, trust, _, _ = sample
    labels[-1] = 6  # all of its class
    whitened = whiten(rows, labels, trust, torch.arange(80))
    _, spread = within_classes(rows, labels, trust)
    values, directions = torch.linalg.eigh(spread)
    root = directions * values.sqrt() @ directions.T
    shrinkage = 0.1 + 0.9 * 5 / 85
    balls = spread - (1 - shrinkage) * scatter(rows, labels, trust) / trust.sum()
    for i in (0, 33, 79):
        others = torch.arange(80) != i
        without = (1 - shrinkage) * scatter(rows[others], labels[others], trust[others]) / trust.sum() + balls
        off = (whitened.rows[i] - whitened.centres[labels[i]]).double()
        expected = torch.eye(5) + whitened.own[i] * torch.outer(off, off)
        torch.testing.assert_close(root @ without.inverse() @ root, expected, atol=1e-4, rtol=1e-4)
    assert whitened.own[-1] == 0 and (whitened.own[:-1] > 0).all()


def scatter(rows, labels, trust):
    """Of samples about the means of their classes, (D, D)."""
    total = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for k in labels.unique():
        own, weights = rows[labels == k].double(), trust[labels == k, None].double()
        off = own - (own * weights).sum(dim=0) / weights.sum()
        total += (weights * off).T @ off
    return total


def test_voters_name_the_most_voted_classes():
    _, _, labels, similarities, neighbours = made_wrong(60, 10, 0.5, 0)
    candidates = find_candidates(labels, similarities, neighbours)
    assert 0.2 < candidates.given_voted.float().mean() < 0.9
    for i in range(0, 600, 37):
        votes = torch.zeros(60)
        for similarity, neighbour in zip(similarities[i], neighbours[i], strict=True):
            votes[labels[neighbour]] += math.exp((similarity - similarities[i, 0]) / 0.1)
        own = votes[labels[i]].item()
        votes[labels[i]] = math.inf
        named = votes.argsort(descending=True)[:16]
        assert (candidates.voted[i] == named).all()
        assert candidates.given_voted[i] == (own >= votes[named].min())
    rows = torch.tensor([3, 50])
    asked = find_candidates(labels, similarities, neighbours, rows)
    for whole, part in zip(vars(candidates).values(), vars(asked).values(), strict=True):
        assert (whole[rows] == part).all()


def test_few_voted_classes_leave_empty_places(sample):
    _, labels, _, similarities, neighbours = sample
    candidates = find_candidates(labels, similarities, neighbours)
    for i in range(0, 80, 7):
        voted = set(labels[neighbours[i]].tolist())
        there = candidates.voted[i] >= 0
        assert set(candidates.voted[i][there].tolist()) == voted | {int(labels[i])}
        assert there.sum() == len(voted | {int(labels[i])}) and not there[int(there.sum()) :].any()
        assert candidates.given_voted[i] == (int(labels[i]) in voted)


@pytest.fixture(params=["every class compared", "the voted ones"])
def weighed(request, monkeypatch):
    """Evidence on 600 samples of 60 classes, and what it is of."""
    if request.param == "the voted ones":
        only_the_voted(monkeypatch)
    rows, _, labels, *near = made_wrong(60, 10, 0.5, 0)
    candidates = find_candidates(labels, *near)
    trust = torch.rand(len(labels), generator=torch.Generator().manual_seed(1))
    evidence = weigh_candidates(
        candidates, as_they_are(rows, labels), labels, trust, torch.arange(len(labels))
    )
    return request.param, evidence, candidates, rows, labels, trust


def test_most_likely_classes_are_considered(weighed):
    how, evidence, candidates, rows, labels, trust = weighed
    whole = ClassBalls(as_they_are(rows, labels), labels, trust).density(torch.arange(len(labels)))
    there = evidence.stands_for > 0
    expected = whole.gather(1, evidence.classes)
    torch.testing.assert_close(evidence.density[there], expected[there], atol=1e-4, rtol=1e-4)
    voted = candidates.voted.shape[1]
    named, likely = evidence.classes[:, :voted], evidence.classes[:, voted:-DRAWN]
    assert (named == candidates.voted).all() and (named[:, 0] == labels).all()
    if how == "the voted ones":
        assert not likely.numel()
    else:
        others = whole.scatter(1, named, -math.inf)
        assert (likely == others.argsort(dim=1, descending=True)[:, :15]).all()


def test_candidates_stand_for_all_classes(weighed):
    _, evidence, _, _, labels, _ = weighed
    drawn_in_vain = evidence.stands_for[:, -DRAWN:].sum(dim=1) == 0
    total = evidence.stands_for.sum(dim=1)[~drawn_in_vain]
    torch.testing.assert_close(total, torch.full_like(total, 60.0))
    for i in range(0, len(labels), 17):
        there = evidence.stands_for[i, :-DRAWN] > 0
        named = set(evidence.classes[i, :-DRAWN][there].tolist())
        assert len(named) == there.sum()
        drawn = evidence.classes[i, -DRAWN:]
        assert all(
            (int(k) in named) == (stands == 0)
            for k, stands in zip(drawn, evidence.stands_for[i, -DRAWN:], strict=True)
        )


@pytest.mark.parametrize("count", [2, 16, 17])
def test_few_classes_are_all_named_and_none_is_drawn(count):
    rows, _, labels, *near = made_wrong(count, 12, 0.3, 0)
    candidates = find_candidates(labels, *near)
    evidence = weigh_candidates(
        candidates, as_they_are(rows, labels), labels, torch.ones(len(labels)), torch.arange(len(labels))
    )
    assert candidates.drawn.shape[1] == (0 if count <= 16 else DRAWN)
    assert (evidence.stands_for.sum(dim=1) == count).all()
    model = LabelModel(count)
    model.fit(evidence)
    best = evidence.classes.gather(1, model.prior(evidence).argmax(dim=1, keepdim=True)).squeeze(1)
    assert torch.equal(model(evidence).wins, best == labels)


def test_what_there_is_for_classes_and_pairs_is_that_of_indexing(weighed):
    _, evidence, *_ = weighed
    generator = torch.Generator().manual_seed(4)
    for values, found, expected in (
        (torch.rand(60, generator=generator), evidence.of_classes, lambda v: v[evidence.classes]),
        (
            torch.rand(60, 60, generator=generator),
            evidence.of_pairs,
            lambda v: v[evidence.classes, evidence.classes[:, :1]],
        ),
    ):
        weights = torch.rand(evidence.classes.shape, generator=generator)
        values.requires_grad_(True)
        assert torch.equal(found(values), expected(values))
        slopes = [torch.autograd.grad((weights * of(values)).sum(), values)[0] for of in (found, expected)]
        torch.testing.assert_close(*slopes)


def test_beliefs_are_probabilities_and_the_loss_falls(sample):
    rows, labels, trust, similarities, neighbours = sample
    candidates = find_candidates(labels, similarities, neighbours)
    evidence = weigh_candidates(candidates, as_they_are(rows, labels), labels, trust, torch.arange(80))
    model = LabelModel(6)
    before = model._loss(model.parameters, evidence)
    assert model.fit(evidence) < before
    belief = model(evidence)
    assert (belief.classes >= 0).all() and (belief.classes.sum(dim=1) <= 1 + 1e-9).all()
    assert 0 < model.rate_error(evidence) < 0.5
    fitted = model.parameters
    model.raise_rate(evidence, 0.6)
    assert model.parameters.all_classes[0] == fitted.all_classes[0]
    assert torch.equal(model.parameters.each_class, fitted.each_class)
    assert 1 - model(evidence).classes[:, 0].mean() == pytest.approx(0.6, abs=1e-4)
    model.raise_rate(evidence, 0.3)  # raised, never lowered
    assert 1 - model(evidence).classes[:, 0].mean() == pytest.approx(0.6, abs=1e-4)


def test_votes_raise_the_odds_until_right_labels_are_voted_for_as_often_as_they_are():
    rows, _, labels, *near = made_wrong(60, 10, 0.5, 0)
    candidates = find_candidates(labels, *near)
    everyone, every = torch.ones(len(labels)), torch.arange(len(labels))
    blurred = rows + 0.2 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(2))
    evidence = weigh_candidates(candidates, as_they_are(blurred, labels), labels, everyone, every)
    model = LabelModel(60)
    model.fit(evidence)
    odds = vote_odds(model, evidence, candidates)
    assert odds > 1.5
    prior, right = model.prior(evidence), model(evidence).classes[:, 0]
    torch.testing.assert_close(prior.sum(dim=1), torch.ones(len(labels)))
    voted = prior[:, 1:16].sum(dim=1) + prior[:, 0] * candidates.given_voted
    raised = odds * voted / (odds * voted + 1 - voted)
    assert (right * raised).sum() == pytest.approx(float((right * candidates.given_voted).sum()), rel=0.01)
    generator = torch.Generator().manual_seed(3)
    strangers = find_candidates(
        labels, near[0], torch.randint(len(labels), near[1].shape, generator=generator)
    )
    evidence = weigh_candidates(strangers, as_they_are(rows, labels), labels, everyone, every)
    assert vote_odds(model, evidence, strangers) < 1.2


def test_doubts_count_as_far_as_the_classes_are_known():
    right = torch.tensor([[0.9], [0.6], [0.5], [0.0]])
    surely = Posterior(right, torch.tensor([True, True, False, False]))
    assert surely.knowledge == 1
    assert surely.trust().tolist() == right[:, 0].tolist()
    hardly = Posterior(right, torch.zeros(4, dtype=torch.bool))
    assert hardly.knowledge == 0
    assert hardly.trust().tolist() == [1.0] * 4


def separate(wrong_from, wrong_to, rate, size=400):
    """Evidence of five classes that overlap, with a share of one class's labels changed to another; labels, truth."""
    generator = torch.Generator().manual_seed(2)
    truth = torch.arange(5).repeat(size)
    rows = torch.randn(len(truth), 5, generator=generator) + 2.5 * torch.eye(5)[truth]
    changed = (truth == wrong_from) & (torch.rand(len(truth), generator=generator) < rate)
    labels = torch.where(changed, wrong_to, truth)
    cosines = torch.nn.functional.normalize(rows, dim=1) @ torch.nn.functional.normalize(rows, dim=1).T
    similarities, neighbours = cosines.fill_diagonal_(-math.inf).topk(32, dim=1)
    candidates = find_candidates(labels, similarities, neighbours)
    everyone = torch.ones(len(truth))
    return (
        weigh_candidates(candidates, as_they_are(rows, labels), labels, everyone, torch.arange(len(truth))),
        labels,
        changed,
    )


def test_few_classes_have_their_own_flips():
    evidence, labels, changed = separate(1, 3, rate=0.5)
    model = LabelModel(5)
    model.fit(evidence)
    off = model.parameters.flips - torch.diag(torch.full((5,), math.inf))
    assert off.argmax() == 1 * 5 + 3
    right = model(evidence).classes[:, 0]
    alike = LabelModel(5)
    alike.fit(evidence)
    alike.parameters = replace(alike.parameters, flips=None)
    assert right[changed].mean() < alike(evidence).classes[changed, 0].mean() - 0.05
    assert right[(labels == 3) & ~changed].mean() > 0.8


def evidence_of(rows, labels):
    """As all others give it, each trusted alike."""
    everyone, every = torch.ones(len(labels)), torch.arange(len(labels))
    whitened = whiten(rows, labels, everyone, every)
    return weigh_candidates(find_candidates(labels, *nearest(rows)), whitened, labels, everyone, every)


def test_members_do_not_count_where_classes_are_even():
    """Chance would be taken for frequency; a model that has counted members forgets them."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(100).repeat_interleave(torch.tensor([60] * 10 + [3] * 90))
    rows = 0.4 * torch.randn(100, 32, generator=generator)[labels]
    model = LabelModel(100)
    model.fit(evidence_of(rows + torch.randn(len(labels), 32, generator=generator), labels))
    assert model._log_members is not None
    rows, _, labels, *_ = made_wrong(100, 12, 0.3, 0, rate=0.2)
    loss = model.fit(evidence_of(rows, labels))
    assert model._log_members is None
    assert loss == pytest.approx(LabelModel(100).fit(evidence_of(rows, labels)), abs=1e-3)


def test_what_nothing_is_known_of_does_not_win_for_being_rare():
    """It is as probable as any, on average, so that another is more probable."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(30).repeat_interleave(torch.tensor([200] * 6 + [4] * 12 + [1] * 12))
    rows = 0.5 * torch.randn(30, 32, generator=generator)[labels]
    evidence = evidence_of(rows + torch.randn(len(labels), 32, generator=generator), labels)
    model = LabelModel(30)
    model._log_members = torch.bincount(labels).double().log()
    wins = model(evidence).wins
    assert (~evidence.known).sum() == 12 and not wins[~evidence.known].any() and wins[evidence.known].any()


def test_empty_columns_have_no_part_in_the_fit():
    evidence, *_ = separate(1, 3, rate=0.5)
    used = evidence.filled()
    assert used.classes.shape[1] < evidence.classes.shape[1] and torch.equal(
        used.classes[:, 0], evidence.classes[:, 0]
    )
    assert torch.equal(used.stands_for.sum(dim=1), evidence.stands_for.sum(dim=1))
    losses = []
    for columns in (evidence, used):
        model = LabelModel(5)
        losses.append(float(model._loss(model.parameters, columns)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_confusion_tells_which_class_is_taken_for_which():
    evidence, _, _ = separate(1, 3, rate=0.5)
    model = LabelModel(5)
    assert model.mistakes(0.1, CPU) == AnyAlike(0.1), "nothing is counted"
    model.fit(evidence)
    model.count_pairs(evidence)
    found = model.mistakes(0.1, CPU).shares
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(dim=1), torch.ones(5))
    off = found - torch.eye(5)
    assert off.argmax() == 1 * 5 + 3
    assert 0.3 < off.max() < 0.55, "half of the class is given the other label"
    assert found.diagonal()[[0, 2, 3, 4]].min() > 0.9, "the labels of the others are right"
    clean, *_ = separate(1, 3, rate=0)
    model.fit(clean)
    assert model.mistakes(0.1, CPU) == AnyAlike(0.1), "what was counted is of other labels"
    model.count_pairs(clean)
    assert model.mistakes(0.1, CPU).shares.diagonal().min() > 0.95


def test_counted_pairs_name_the_wrong_labels_and_leave_their_share():
    evidence, _, changed = separate(1, 3, rate=0.5)
    model = LabelModel(5)
    model.fit(evidence)
    fitted = model(evidence).classes[:, 0]
    model.count_pairs(evidence)
    counted = model(evidence).classes[:, 0]
    assert counted.mean() == pytest.approx(float(fitted.mean()), abs=1e-4)
    assert roc_auc_score(~changed, counted) > 0.98
    assert ((counted >= 0) & (counted <= 1)).all()


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.6])
def test_counting_leaves_the_share_of_labels_that_are_any_alike(rate: float):
    rows, _, labels, *near = made_wrong(5, 400, rate, 0)
    candidates = find_candidates(labels, *near)
    everyone, every = torch.ones(len(labels)), torch.arange(len(labels))
    evidence = weigh_candidates(candidates, whiten(rows, labels, everyone, every), labels, everyone, every)
    model = LabelModel(5)
    model.fit(evidence)
    fitted = 1 - model(evidence).classes[:, 0].mean()
    model.count_pairs(evidence)
    assert 1 - model(evidence).classes[:, 0].mean() == pytest.approx(float(fitted), abs=2e-3)


def test_the_confident_joint_is_counted_as_by_hand():
    """Under their own labels the classes have 0.6, 0.5 and 0.4 on average."""
    prior = torch.tensor([[0.8, 0.2, 0], [0.4, 0.6, 0], [0.4, 0.3, 0.3], [0.6, 0.4, 0], [0.4, 0.6, 0]])
    candidates = torch.tensor([[0, 1, 2], [0, 1, 2], [1, 0, 2], [1, 0, 0], [2, 0, 1]])
    # The second is of class 1, the third of none that is as probable as usual, the fifth of class 0; of class 2 none.
    expected = torch.tensor([[1.0, 0, 1.0], [1.0, 2.0, 0], [0, 0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(confident_joint(prior, candidates, 3), expected)
    # Of a class without a sample, nothing is known of how probable it usually is.
    assert torch.equal(confident_joint(prior[:4], candidates[:4], 3)[2], torch.tensor([0, 0, 1]).double())


def test_a_rate_that_is_raised_anew_forgets_what_was_counted():
    evidence, *_ = separate(1, 3, rate=0.2)
    model = LabelModel(5)
    model.fit(evidence)
    model.count_pairs(evidence)
    model.raise_rate(evidence, 0.5)
    assert 1 - model(evidence).classes[:, 0].mean() == pytest.approx(0.5, abs=1e-3)


def test_many_classes_have_no_confusion_of_their_own():
    rows, _, labels, *near = made_wrong(40, 20, 1.0, 0)
    found = judge_labels(rows, labels, *near)
    assert isinstance(found.mistakes, AnyAlike) and found.mistakes.rate == pytest.approx(found.noise_rate)


@pytest.mark.parametrize("clearness", [0.25, 0.3, 0.45])
def test_the_rate_of_a_few_hundred_samples_is_as_sure_as_it_says(clearness):
    """With their own say in the spread, samples of 128 directions speak for any label: 0.07 to 0.25 for 0.30."""
    rates = []
    for seed in range(5):
        rows, _, labels, *near = made_wrong(8, 30, clearness, seed)
        found = judge_labels(rows, labels, *near)
        assert abs(found.noise_rate - 0.3) < 2 * found.rate_error + 0.02
        rates.append(found.noise_rate)
    assert sum(rates) / 5 == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("clearness", [0.45, 0.8])
def test_copies_have_no_say_on_each_other(clearness):
    """As in folders of scraped photographs: a wrong label that is there twice confirmed itself: 0.01 to 0.22."""
    for seed in range(3):
        rows, _, labels, *_ = made_wrong(8, 30, clearness, seed)
        order = torch.randperm(480, generator=torch.Generator().manual_seed(seed))
        rows, labels = rows.repeat(2, 1)[order], labels.repeat(2)[order]
        assert judge_labels(rows, labels, *nearest(rows)).noise_rate == pytest.approx(0.3, abs=0.03)


def test_a_class_that_is_one_image_many_times_is_judged_by_it():
    rows, _, labels, *_ = made_wrong(4, 30, 2.0, 0, rate=0.0)
    rows = rows[:4][labels]
    found = judge_labels(rows, labels, *nearest(rows))
    assert found.noise_rate < 0.01


@pytest.mark.parametrize("most", [128, 1000])
def test_few_samples_of_many_directions(most, monkeypatch):
    """Of 1,000 directions a few tell the classes: in all others each sample speaks for the class that it was given."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(20).repeat(60)
    rows = 0.25 * torch.randn(1200, 1000, generator=generator)
    rows[:, :40] = 2 * torch.randn(20, 40, generator=generator)[truth] + torch.randn(
        1200, 40, generator=generator
    )
    labels = torch.where(
        torch.rand(1200, generator=generator) < 0.75, torch.randint(20, (1200,), generator=generator), truth
    )
    rows = torch.nn.functional.normalize(rows, dim=1)
    near = nearest(rows)
    rate = float((labels != truth).float().mean())
    monkeypatch.setattr(cross_fit, "_DIRECTIONS", most)
    monkeypatch.setattr(cross_fit, "_FEWER_BELOW", 1)
    found = judge_labels(rows, labels, *near)
    assert found.noise_rate == pytest.approx(rate, abs=0.01)
    assert ((found.clean_probability > 0.5) == (labels == truth)).float().mean() > 0.99


def test_leading_directions_are_those_of_principal_components():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(50, 6, generator=generator) * torch.tensor([1.0, 5, 2, 4, 0.1, 3])
    assert leading(rows, 6) is rows
    _, _, components = torch.pca_lowrank(rows, q=6, niter=10)
    expected = (rows - rows.mean(dim=0)) @ components[:, :3]
    torch.testing.assert_close(leading(rows, 3).flip(1).abs(), expected.abs(), atol=1e-3, rtol=1e-3)


def test_many_classes_have_not():
    evidence, _, _ = separate(1, 3, rate=0.5, size=40)  # 200 samples, 25 pairs
    model = LabelModel(5)
    model.fit(evidence)
    assert model.parameters.flips is None


def made_wrong(classes: int, each: int, clearness: float, seed: int, rate: float = 0.3):
    """Embeddings in classes, a share of their labels made wrong: rows, truth, labels, similarities, neighbours."""
    rows, truth, generator = in_classes(classes, each, clearness, seed)
    wrong = torch.randperm(len(truth), generator=generator) < rate * len(truth)
    shift = torch.randint(1, classes, (len(truth),), generator=generator)
    labels = torch.where(wrong, (truth + shift) % classes, truth)
    return rows, truth, labels, *nearest(rows)


def in_classes(classes: int, each: int, clearness: float, seed: int):
    """Embeddings in classes, in turn: rows, their classes, the generator."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(classes).repeat(each)
    rows = clearness * torch.randn(classes, 128, generator=generator)[truth]
    rows = rows + torch.randn(len(truth), 128, generator=generator)
    return torch.nn.functional.normalize(rows, dim=1), truth, generator


def nearest(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarities and numbers of the 64 nearest neighbours, or all others."""
    found = (rows @ rows.T).fill_diagonal_(-math.inf).topk(min(64, len(rows) - 1), dim=1)
    return found.values, found.indices


@pytest.mark.parametrize("classes, each", [(4, 12), (4, 30), (8, 12), (10, 30)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_few_clear_samples_tell_the_rate(classes: int, each: int, seed: int):
    """The neighbours are most of the data, there are more components than samples, all is about equally clear."""
    rows, truth, labels, *near = made_wrong(classes, each, 1.5, seed)
    found, wrong = judge_labels(rows, labels, *near), labels != truth
    assert found.noise_rate == pytest.approx(float(wrong.float().mean()), abs=0.02)
    assert ((found.clean_probability < 0.5) == wrong).float().mean() > 0.95
    assert judge_labels(rows, truth, *near).noise_rate < 0.02


@pytest.mark.parametrize("classes, each", [(100, 10), (40, 20)])
def test_many_small_classes_hardly_apart(classes: int, each: int):
    rows, truth, labels, *near = made_wrong(classes, each, 0.3, 0)
    found, right = judge_labels(rows, labels, *near), labels == truth
    assert found.noise_rate == pytest.approx(0.3, abs=0.1)
    better = found.clean_probability[right][:, None] > found.clean_probability[~right]
    assert better.float().mean() > 0.86, "AUROC"


def only_the_voted(monkeypatch):
    """As of so many samples and classes that not every class is looked at."""
    monkeypatch.setattr(candidate_classes, "_EVERY", 0)
    monkeypatch.setattr(candidate_classes, "_FETCH", 0)


def test_mostly_wrong_labels_of_many_classes(monkeypatch):
    """The right class is often not among those that the neighbours vote for."""

    def judged(seed):
        """Rate, AUROC; what is said of suggestions with more than one half and how many of them are right."""
        rows, truth, labels, *near = made_wrong(300, 20, 0.5, seed, rate=0.8)
        found, right = judge_labels(rows, labels, *near), labels == truth
        better = found.clean_probability[right][:, None] > found.clean_probability[~right]
        sure = (found.suggested != labels) & (found.suggested_probability > 0.5)
        met = (found.suggested == truth)[sure].float().mean()
        told = found.suggested_probability[sure].mean()
        return found.noise_rate, float(better.float().mean()), float(told), float(met)

    seeds = range(3)
    rate, auroc, told, met = (sum(v) / 3 for v in zip(*map(judged, seeds), strict=True))
    assert rate == pytest.approx(0.8, abs=0.04) and auroc > 0.86
    only_the_voted(monkeypatch)
    voted_rate, voted_auroc, voted_told, voted_met = (
        sum(v) / 3 for v in zip(*map(judged, seeds), strict=True)
    )
    assert voted_auroc > 0.86
    assert rate < voted_rate - 0.01
    assert told - met < voted_told - voted_met - 0.08, "how far they are believed too much"


def test_votes_tell_what_a_wrong_label_should_be_not_whether_it_is_wrong(monkeypatch):
    rows, truth, labels, *near = made_wrong(300, 20, 0.5, 0, rate=0.8)
    found = judge_labels(rows, labels, *near)
    monkeypatch.setattr(cross_fit, "vote_odds", lambda *of: 1.0)
    unasked = judge_labels(rows, labels, *near)
    assert torch.equal(found.clean_probability, unasked.clean_probability)
    assert found.noise_rate == unasked.noise_rate

    def right_of_the_wrong(judgement):
        best = 1 + judgement.chances[:, 1:].argmax(dim=1, keepdim=True)
        return (judgement.classes.gather(1, best).squeeze(1) == truth)[labels != truth].float().mean()

    assert right_of_the_wrong(found) > 1.2 * right_of_the_wrong(unasked)


@pytest.mark.parametrize("voted", [False, True])
def test_what_is_believed_of_all_classes_and_of_none_sums_to_one(monkeypatch, voted):
    """Also where a class is a heap of samples of others, whose labels are believed less."""
    if voted:
        only_the_voted(monkeypatch)
    rows, _, labels, *_ = made_wrong(60, 20, 0.4, 0, rate=0.05)
    generator = torch.Generator().manual_seed(9)
    heap = torch.randperm(len(labels), generator=generator)[:30]
    labels[heap] = 60
    rows[heap[:8]] = torch.nn.functional.normalize(torch.randn(8, 128, generator=generator), dim=1)
    near = nearest(rows)
    found = judge_labels(rows, labels, *near)
    assert found.clean_probability[heap].max() <= 0.5 < found.clean_probability.mean()
    listed = found.chances.sum(dim=1) + found.nowhere
    assert (listed <= 1 + 1e-6).all() and (found.chances >= 0).all() and (found.nowhere >= 0).all()
    if not voted:  # else some of the rest is of classes that are not listed
        assert listed.min() > 0.98


def test_weak_evidence_is_not_taken_for_none():
    """Labels mostly wrong, of classes hardly apart: that all samples are hard would explain them about as well."""
    rates = []
    for seed in range(4):
        rows, _, labels, *near = made_wrong(40, 60, 0.25, seed, rate=0.8)
        rates.append(judge_labels(rows, labels, *near).noise_rate)
    assert min(rates) > 0.74 and sum(rates) / 4 == pytest.approx(0.8, abs=0.05)


def test_folds_are_even_and_split_every_class():
    labels = torch.arange(40).repeat_interleave(torch.arange(1, 41))
    folds = deal(labels, FOLDS)
    sizes = torch.bincount(folds, minlength=FOLDS)
    assert sizes.max() - sizes.min() <= 1
    for k in range(40):
        parts = torch.bincount(folds[labels == k], minlength=FOLDS)
        assert parts.max() - parts.min() <= 1


def test_some_of_many_are_drawn_and_all_of_few_are_taken():
    assert some(7, 7, torch.device("cpu")).tolist() == list(range(7))
    drawn = some(1000, 100, torch.device("cpu"))
    assert len(drawn) == 100 and (drawn.diff() > 0).all()
    assert len(set((drawn.diff()).tolist())) > 5  # not every tenth
    assert drawn.equal(some(1000, 100, torch.device("cpu")))


@pytest.mark.parametrize("fitted", [20_000, 300])
def test_classes_need_not_be_wrong_equally_often(monkeypatch, fitted: int):
    """Every fourth sample is of the one class that is labelled right, so that a fit to every fourth finds nothing."""
    rows, truth, generator = in_classes(4, 300, 0.6, 0)
    wrong = (truth > 0) & (torch.rand(1200, generator=generator) < 0.5)
    labels = torch.where(wrong, (truth + torch.randint(1, 4, (1200,), generator=generator)) % 4, truth)
    monkeypatch.setattr(label_model, "_MOST_FITTED", fitted)
    monkeypatch.setattr(cross_fit, "_FIRST", fitted)
    found = judge_labels(rows, labels, *nearest(rows))
    assert found.noise_rate == pytest.approx(float(wrong.float().mean()), abs=0.03)
    assert roc_auc_score(~wrong, found.clean_probability) > 0.99


@pytest.mark.parametrize(
    "sizes", [[100, 1], [500] + [1] * 6, [900, 50], [int(300 * 0.84**k) for k in range(30)]], ids=str
)
@pytest.mark.parametrize("clearness, most", [(1.5, 0.03), (1.0, 0.1)])
def test_right_labels_of_rare_classes_are_believed(sizes: list[int], clearness: float, most: float):
    """Were small classes free to have rates of their own, all near them would be theirs, wrongly labelled."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes).clamp(min=1))
    rows = clearness * torch.randn(len(sizes), 16, generator=generator)[labels]
    rows = torch.nn.functional.normalize(rows + torch.randn(len(labels), 16, generator=generator), dim=1)
    found = judge_labels(rows, labels, *nearest(rows))
    assert found.noise_rate < most
    assert (found.clean_probability < 0.5).float().mean() < 0.02


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_a_class_that_is_often_taken_for_one_other(rate: float):
    """A class's mean lies between the two, so that by everyone's say all of its samples are hard ones."""
    rows, truth, generator = in_classes(8, 250, 0.3, 0)
    wrong = torch.rand(len(truth), generator=generator) < rate
    labels = torch.where(wrong, (truth + 1) % 8, truth)
    found = judge_labels(rows, labels, *nearest(rows))
    assert found.noise_rate == pytest.approx(float(wrong.float().mean()), abs=0.03)
    if rate:
        assert roc_auc_score(~wrong, found.clean_probability) > 0.99
        assert (found.suggested == truth).float().mean() > 0.95
        for k in range(8):
            assert found.mistakes.shares[k].argsort(descending=True)[:2].tolist() == [k, (k + 1) % 8]


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_classes_that_are_given_each_others_labels(rate: float):
    """Two and two: begun with mistakes that are all alike, no label would be found wrong.

    Were they clearer, it would be so all the same: a mean between two of them is then the better explanation.
    """
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(8).repeat_interleave(250)
    centres = torch.nn.functional.normalize(torch.randn(8, 32, generator=generator), dim=1)
    rows = 4.5 * centres[truth] + torch.randn(2000, 32, generator=generator)
    rows = torch.nn.functional.normalize(rows, dim=1)
    wrong = torch.rand(2000, generator=generator) < rate
    labels = torch.where(wrong, truth ^ 1, truth)
    found = judge_labels(rows, labels, *nearest(rows))
    assert found.noise_rate == pytest.approx(float(wrong.float().mean()), abs=0.03)
    assert (found.clean_probability < 0.5)[~wrong].float().mean() < 0.01
    if rate:
        assert roc_auc_score(~wrong, found.clean_probability) > 0.99
        assert (found.suggested == truth).float().mean() > 0.98


def test_pairs_of_classes_as_they_were_counted():
    counts = torch.rand(5, 5, generator=torch.Generator().manual_seed(0)).double() + 0.1
    shares = counts / counts.sum(dim=1, keepdim=True)
    evidence, *_ = separate(1, 3, rate=0.5)
    counted = LabelModel(5).parameters.with_pairs(counts)
    for parameters in (counted, counted.centred(counts.sum(dim=0))):
        torch.testing.assert_close(parameters.seen(evidence), evidence.of_pairs(shares))
    assert counted.flips.sum(dim=1).abs().max() < 1e-9, "the prior holds them to none"


@pytest.mark.parametrize("rate", [0.0, 0.2])
@pytest.mark.parametrize("classes, sizes, width", [(10, (1500, 20), 32), (30, (600, 2), 64)])
def test_frequent_classes_are_not_taken_for_mistaken_rare_ones(classes, sizes, width, rate: float):
    """Classes that overlap, with a long tail: few, with enough samples for pairs of classes, and more."""
    generator, (most, least) = torch.Generator().manual_seed(0), sizes
    counts = (most * (least / most) ** (torch.arange(classes) / (classes - 1))).round().long()
    truth = torch.arange(classes).repeat_interleave(counts)
    rows = 3.2 / math.sqrt(2 * width) * torch.randn(classes, width, generator=generator)[truth]
    rows = torch.nn.functional.normalize(rows + torch.randn(len(truth), width, generator=generator), dim=1)
    wrong = torch.rand(len(truth), generator=generator) < rate
    shift = torch.randint(1, classes, (len(truth),), generator=generator)
    labels = torch.where(wrong, (truth + shift) % classes, truth)
    found = judge_labels(rows, labels, *nearest(rows))
    assert found.noise_rate == pytest.approx(float(wrong.float().mean()), abs=0.04)
    doubted = (found.clean_probability < 0.5)[~wrong].float()
    assert doubted.mean() < (0.05 if rate else 0.01)
    right = torch.bincount(truth[~wrong], minlength=classes)
    each = torch.bincount(truth[~wrong], doubted, minlength=classes) / right
    assert each[right >= 15].max() < 0.4, "of no class are all doubted because it is rare"
    if rate:
        assert roc_auc_score(~wrong, found.clean_probability) > 0.96


def test_labels_that_all_go_to_one_class_do_not_make_it_frequent():
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(10).repeat_interleave(300)
    rows = 3.5 / 8 * torch.randn(10, 32, generator=generator)[truth]
    rows = torch.nn.functional.normalize(rows + torch.randn(3000, 32, generator=generator), dim=1)
    labels = torch.where(torch.rand(3000, generator=generator) < 0.1, 0, truth)
    found, wrong = judge_labels(rows, labels, *nearest(rows)), labels != truth
    assert found.noise_rate == pytest.approx(float(wrong.float().mean()), abs=0.03)
    assert roc_auc_score(~wrong, found.clean_probability) > 0.97


@pytest.mark.parametrize("classes", [23, 24, 25])
def test_as_many_classes_as_are_drawn(classes: int):
    """Of the candidates all columns are named then, or those that are left are as many as are drawn."""
    rows, truth, labels, *near = made_wrong(classes, 60, 0.3, 0)
    assert roc_auc_score(labels == truth, judge_labels(rows, labels, *near).clean_probability) > 0.9


def test_no_class_is_doubted_for_being_rare():
    """Five of ten classes have a tenth of the samples of the others, and overlap with them."""
    generator = torch.Generator().manual_seed(4)
    truth = torch.arange(10).repeat_interleave(torch.tensor([800] * 5 + [80] * 5))
    rows = 2.5 / 8 * torch.randn(10, 32, generator=generator)[truth]
    rows = torch.nn.functional.normalize(rows + torch.randn(len(truth), 32, generator=generator), dim=1)
    wrong = torch.rand(len(truth), generator=generator) < 0.2
    labels = torch.where(wrong, (truth + torch.randint(1, 10, truth.shape, generator=generator)) % 10, truth)
    doubted = (judge_labels(rows, labels, *nearest(rows)).clean_probability < 0.5)[~wrong].float()
    each = torch.bincount(truth[~wrong], doubted, minlength=10) / torch.bincount(truth[~wrong])
    assert doubted.mean() < 0.06 and each.max() < 0.5
