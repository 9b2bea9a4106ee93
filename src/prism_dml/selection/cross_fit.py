"""Which labels of a whole data set are right: trust, then beliefs by the trusted, without a sample's say on itself."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from prism_dml.selection.candidates import (
    COPY,
    Candidates,
    ClassEvidence,
    find_candidates,
    weigh_candidates,
)
from prism_dml.selection.discriminant import ClassBalls, Whitened, leading, whiten
from prism_dml.selection.draw import deal, some
from prism_dml.selection.label_judgement import LabelJudgement
from prism_dml.selection.label_model import LabelModel
from prism_dml.selection.noise_rate import implausibility
from prism_dml.selection.open_set import of_a_class
from prism_dml.selection.posterior import Posterior

FOLDS = 5
"""Parts of a data set, each judged by the other four."""

_RANKED = 20_000  # samples whose given class is ranked among all, at most,
_FEWEST_RANKED = 30  # and at least
_NOBODY = 1e-6  # trust in a sample's fellows that is none: rounding
_HEAP = 5  # members of a class that would win elsewhere: it is by chance that none of fewer does
_FIRST = 5_000  # samples that the first model, and the odds of votes, are fitted to
_ALIKE = 5e-3  # difference in the mean loss of a first model that says nothing
_TOGETHER = 1 << 16  # samples whose neighbours are looked at together
_NEAR = 1 / 8  # of the data: the neighbours whose agreement says how far a sample counts, at most,
_LEAST_NEIGHBOURS = 3  # and at least
_MOST_VOTE_ODDS = 100.0  # where all right labels are voted for, any would do
_HALVINGS = 20  # of the interval that these odds are in
_DIRECTIONS = 128  # of embeddings that are judged; fewer and more, if there are
_FEWER_BELOW, _MORE_FROM = 2, 20  # so many samples for each
_SLOPE = 0.7  # of densities where this spread is known, found on several data sets: class means are not known either
_OUTNUMBERED = 3  # times as many samples of a class as copies: else these are what the class is
_BELIEVED = 0.5  # probability from which on a label is taken to be right
_RARELY = 1 / 20  # of the wins that its members would have elsewhere: a class that hardly ever wins


@torch.no_grad()
def judge_labels(
    embeddings: Tensor, labels: Tensor, similarities: Tensor, neighbours: Tensor
) -> LabelJudgement:
    """Judge every label by the centres of the classes' trusted samples; neighbours help to name the right class.

    Trust is the probability that a label is right. What a label says of its fellows comes back to it through their
    trust, and wrong labels then confirm each other. So the samples are judged in folds, by the trust of the samples of
    other folds, which itself comes from these only. It begins with everyone alike, or with those whose neighbours agree
    with them.

    Args:
        embeddings: (N, D) float32 unit vectors.
        labels: (N,) given labels, each of [0, C) at least once, C at least 2.
        similarities: (N, K) cosines to the nearest neighbours, not increasing along a row.
        neighbours: (N, K) their sample numbers.

    Source: PRISM (Liu et al., CVPR 2021) for trust by leave-one-out similarity; the model and the folds are ours.
    """
    # Where the neighbours are much of the data, all agree with them alike, so only the nearest ones are asked then.
    near = neighbours[:, : max(_LEAST_NEIGHBOURS, int(_NEAR * len(labels)))]
    # Copies with one label have a say on each other no more than on themselves.
    first = _first_copies(labels, similarities, neighbours)
    folds = deal(labels, FOLDS)[first]
    agreement, by_others = _agreement(labels, near, folds)
    whitened, slope = judged_in(embeddings, labels, agreement, first)
    candidates = find_candidates(labels, similarities, neighbours)

    def weigh(trust: Tensor, rows: Tensor) -> ClassEvidence:
        return weigh_candidates(candidates, whitened, labels, trust, rows)

    others = [folds != fold for fold in range(FOLDS)]
    everyone = [asked.float() for asked in others]
    agreed_with = [_agreed_with(by_others[:, fold], labels, asked) for fold, asked in enumerate(others)]
    some_rows = some(len(labels), _FIRST, labels.device)
    shown = [some_rows[folds[some_rows] == fold] for fold in range(FOLDS)]
    # Both are judged by labels that have no say, so that the better one is the one that makes them more likely.
    begun = []
    for trusts in (everyone, agreed_with):
        model = LabelModel(int(labels.max()) + 1, slope)
        loss = model.fit(ClassEvidence.joined(list(map(weigh, trusts, shown))))
        begun.append((loss, model, trusts))
    _, model, trusts = begun[0] if begun[0][0] < begun[1][0] - _ALIKE else begun[1]

    def ask_the_others() -> ClassEvidence:
        """Each fold's samples by those of the others that these trust."""
        parts, found = [], []
        for fold, asked in enumerate(others):
            rest = asked.nonzero().squeeze(1)
            trust = model(weigh(trusts[fold], rest)).trust().float()
            parts.append((~asked).nonzero().squeeze(1))
            found.append(weigh(torch.zeros_like(agreement).index_copy_(0, rest, trust), parts[fold]))
        return ClassEvidence.joined(found)[torch.cat(parts).argsort()]

    evidence, partnered = ask_the_others(), model.partnered
    model.fit(evidence)
    if model.partnered != partnered:  # the few that it was first fitted to told otherwise
        evidence = ask_the_others()
        model.fit(evidence)
    model.raise_rate(evidence, least_rate(whitened, labels, model(evidence).classes[:, 0].float()))
    model.count_pairs(evidence)
    return _judgement(model, evidence, candidates, labels)


def judged_in(embeddings: Tensor, labels: Tensor, agreement: Tensor, first: Tensor) -> tuple[Whitened, float]:
    """The coordinates that samples are judged in, and the slope of densities in these, see `LabelModel`.

    By the spread within classes, as those see it whose neighbours agree with them: wrong labels would stretch it in
    just the directions that tell classes apart, each in favour of itself.

    Args:
        embeddings: (N, D) float32 unit vectors.
        labels: (N,) given labels.
        agreement: (N,) share of each sample's neighbours that have its label.
        first: (N,) see `whiten`.
    """
    count = len(labels)
    most = max(min(_DIRECTIONS, count // _FEWER_BELOW), count // _MORE_FROM, 1)
    whitened = whiten(leading(embeddings, most), labels, agreement, first)
    # By the spread of N samples in D directions distances come out too large by (N + D) / N.
    return whitened, _SLOPE * count / (count + whitened.rows.shape[1])


def least_rate(whitened: Whitened, labels: Tensor, trust: Tensor) -> float:
    """Share of wrong labels that the ranks of the given classes show, less two standard errors; in [0, 1].

    By the last fifth of the ranks: there, hard clean samples are few. A sample without a trusted fellow has no rank. 0
    below six classes, or 30 ranks, which tell little.

    Args:
        whitened: N samples, see `whiten`.
        labels: (N,) given labels.
        trust: (N,) weight of each sample.
    """
    balls = ClassBalls(whitened, labels, trust)
    if len(balls.mass) < 6:
        return 0.0
    shown = []
    for part in torch.split(some(len(labels), _RANKED, labels.device), 512):
        scores, fellows = balls.density(part), balls.mass[labels[part]] - trust[part]
        own = scores.gather(1, labels[part, None]).squeeze(1)
        shown.append(implausibility(scores, own, balls.mass > 0, fellows > _NOBODY, cut=0.8))
    share = torch.cat(shown).double()
    share = share[share.isfinite()]
    if len(share) < _FEWEST_RANKED:
        return 0.0
    return float((share.mean() - 2 * share.std(correction=0) / len(share) ** 0.5).clamp(0, 1))


def vote_odds(model: LabelModel, evidence: ClassEvidence, candidates: Candidates) -> float:
    """By what factor the neighbours' votes raise a class's odds: right labels are then voted for as often as they are.

    At least 1. The label model is left without it: neighbours may share a wrong label.

    Args:
        model: as fitted.
        evidence: on all N samples.
        candidates: of these.
    """
    voters = some(len(candidates.given_voted), _FIRST, candidates.given_voted.device)
    evidence, given_voted = evidence[voters], candidates.given_voted[voters]
    prior, right = model.prior(evidence), model(evidence).classes[:, 0]
    voted = (prior[:, 1 : candidates.voted.shape[1]].sum(dim=1) + prior[:, 0] * given_voted).double()
    low, high = 1.0, _MOST_VOTE_ODDS
    for _ in range(_HALVINGS):
        odds = (low + high) / 2
        excess = right * (odds * voted / (1 + (odds - 1) * voted) - given_voted.double())
        # and one more sample, voted for in one of two cases, where the odds are even without votes
        if float(excess.sum()) + odds / (1 + odds) - 0.5 < 0:
            low = odds
        else:
            high = odds
    return low


def _first_copies(labels: Tensor, similarities: Tensor, neighbours: Tensor) -> Tensor:
    """The first of each sample's copies that have its label, (N,); itself, if there are none among its neighbours.

    Itself, too, where so many copies are more than a third of what has their label: the rest is not whom to ask.
    """
    itself, parts = torch.arange(len(labels), device=labels.device), []
    for rows in torch.split(itself, _TOGETHER):
        copies = (similarities[rows] >= 1 - COPY) & (labels[neighbours[rows]] == labels[rows, None])
        parts.append(torch.where(copies, neighbours[rows], rows[:, None]).amin(dim=1).minimum(rows))
    first = torch.cat(parts)
    copies = torch.bincount(first, minlength=len(labels))[first]
    return torch.where(torch.bincount(labels)[labels] >= _OUTNUMBERED * copies, first, itself)


def _agreement(labels: Tensor, near: Tensor, folds: Tensor) -> tuple[Tensor, Tensor]:
    """Share in [0, 1] of each sample's neighbours that have its label, (N,), and of those not in each fold (N, F)."""
    parts = []
    for own, theirs in zip(torch.split(labels, _TOGETHER), torch.split(near, _TOGETHER), strict=True):
        same, of_neighbour = (labels[theirs] == own[:, None]).float(), folds[theirs]
        none = same.new_zeros(len(own), FOLDS)
        agreeing = none.scatter_add(1, of_neighbour, same)
        there = none.scatter_add(1, of_neighbour, torch.ones_like(same))
        whole = agreeing.sum(dim=1, keepdim=True)
        others = (whole - agreeing) / (near.shape[1] - there).clamp(min=1)
        parts.append((whole.squeeze(1) / near.shape[1], others))
    whole, others = map(torch.cat, zip(*parts, strict=True))
    return whole, others


def _agreed_with(agreement: Tensor, labels: Tensor, asked: Tensor) -> Tensor:
    """Weight (N,) in [0, 1] of each sample before anything is known: its neighbours' agreement, as its class goes.

    Where all are trusted alike, a class that is often taken for one other lies between the two, and its wrong labels
    are taken for hard samples. But where neighbours know little, those who agree are not the better ones.

    Args:
        agreement: (N,) share of the neighbours that have a sample's label.
        labels: (N,) given labels.
        asked: (N,) whether a sample has a say.
    """
    agreement = agreement * asked
    best = agreement.new_zeros(int(labels.max()) + 1).scatter_reduce(0, labels, agreement, "amax")[labels]
    return torch.where(best > 0, agreement / best.clamp(min=1e-9), asked.float())


def _in_a_heap(belief: Posterior, labels: Tensor) -> Tensor:
    """Whether the given class hardly ever wins, not even where its members are; (N,) bool.

    It is a heap of samples of other classes, which meet everywhere and so look like a rare class; or else the embedding
    does not know it. Either is as likely, where it knows most others.
    """
    expected = torch.bincount(labels) * belief.wins.double().mean()
    wins = torch.zeros_like(expected).index_add_(0, labels, belief.wins.double())
    rarely = (expected >= _HEAP) & (wins < _RARELY * expected)
    return rarely[labels] & (belief.knowledge > 0.5)


def _judgement(
    model: LabelModel, evidence: ClassEvidence, candidates: Candidates, labels: Tensor
) -> LabelJudgement:
    belief = model(evidence)
    given, heap = belief.classes[:, 0], _in_a_heap(belief, labels)
    clean = torch.where(heap, given / 2, given)
    scale = (1 - clean) / (1 - given).clamp(min=1e-9)
    nowhere = torch.minimum(((1 - belief.classes.sum(dim=1)) * scale).clamp(min=0), 1 - clean)
    # Whether a label is right is not the neighbours' to say, but if it is wrong, they know of what else it may be.
    others = belief.classes[:, 1:]
    before = others.sum(dim=1)
    others[:, : candidates.voted.shape[1] - 1] *= vote_odds(model, evidence, candidates)
    scale = scale * before / others.sum(dim=1).clamp(min=1e-30)
    named = evidence.classes.shape[1] - candidates.drawn.shape[1]
    others = others[:, : named - 1] * scale[:, None]
    # Nor does the evidence know of kinds that are no class.
    likeliest, column = others.max(dim=1)
    best = evidence.classes.gather(1, 1 + column[:, None]).squeeze(1)
    believed = (clean >= _BELIEVED) & ~heap
    suspect = (clean < _BELIEVED) & ~heap
    belonging = of_a_class(labels, candidates.neighbours, believed, best, likeliest * suspect)
    others = others * belonging[:, None]
    other_kind = (1 - clean - nowhere) * (1 - belonging)
    first = clean.masked_fill(heap, 0.0)[:, None]
    probability, best = torch.cat([first, others], dim=1).max(dim=1)
    return LabelJudgement(
        suggested=evidence.classes.gather(1, best[:, None]).squeeze(1),
        suggested_probability=probability.clamp(max=1),
        find_rate_error=partial(model.rate_error, model.fitted_to(evidence)),
        candidates=candidates,
        classes=evidence.classes[:, :named],
        chances=torch.cat([clean[:, None], others], dim=1),
        nowhere=nowhere + other_kind,
        other_kind=other_kind,
        mistakes=model.mistakes(float(1 - clean.mean()), clean.device),
    )
