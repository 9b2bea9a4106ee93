"""The classes that a sample may belong to, and what the trusted members of each say of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from prism_dml.selection.discriminant import ClassBalls, Whitened

MOST_VOTED, MOST_LIKELY = 16, 15
"""Classes considered for a sample: the given one and those with the most votes; and of the others the likeliest."""

DRAWN = 24
"""Further classes, drawn at random: they stand for all the others. Were the given class always considered, and others
only for what speaks for them, being given would make it likely."""

CHUNK = 4096
"""Samples looked at together, at most."""

_NUMBERS = 1 << 24  # densities of samples under all classes that are looked at together

_EVERY = 1 << 30  # densities up to which each sample is compared with every class, five times in all

_FETCH = 100  # products with classes that lie in a row, in the time that it takes to fetch one from anywhere

COPY = 1e-6
"""So near to its neighbour, in cosine, a sample is a copy of it."""

_TEMPERATURE = 0.1  # of the neighbours' votes, in cosine


@dataclass(frozen=True)
class Candidates:
    """What N samples' neighbours say of the classes that they may belong to.

    Attributes:
        samples: (N,) numbers of the samples in the data set.
        voted: (N, MOST_VOTED) the given class, then those with the most votes; -1: no more. Fewer columns where
            there are fewer neighbours.
        given_voted: (N,) bool, whether the given class has as many votes as the last of those.
        drawn: (N, M) classes drawn at random, see `count_drawn`.
        neighbours: (N, K) sample numbers of the nearest neighbours, best first.
        kernel: (N, K) weight of each neighbour's vote, in [0, 1].
        affinity: (N,) similarity to the nearest neighbour, in interquartile ranges from the median.
    """

    samples: Tensor
    voted: Tensor
    given_voted: Tensor
    drawn: Tensor
    neighbours: Tensor
    kernel: Tensor
    affinity: Tensor


@dataclass(frozen=True)
class ClassEvidence:
    """What is known of n samples and M candidate classes of each.

    Attributes:
        classes: (n, M) class numbers: those voted for, see `Candidates`, the most likely others, and the drawn ones,
            see `count_drawn`.
        density: (n, M) log-density under each candidate as a ball about its trusted members' mean, up to a constant.
        stands_for: (n, M) number of classes that each is an example of; 0: none, the column is empty.
        affinity: (n,) see `Candidates`.
        known: (n,) bool, whether any other sample of the given class has a say.
    """

    classes: Tensor
    density: Tensor
    stands_for: Tensor
    affinity: Tensor
    known: Tensor

    def __getitem__(self, rows: Tensor) -> ClassEvidence:
        """The evidence of some of the samples."""
        return ClassEvidence(*(column[rows] for column in self.columns()))

    @classmethod
    def joined(cls, parts: Sequence[ClassEvidence]) -> ClassEvidence:
        """The evidence of all parts' samples, part by part."""
        return cls(*map(torch.cat, zip(*(part.columns() for part in parts), strict=True)))

    def columns(self) -> tuple[Tensor, ...]:
        """What it is made of."""
        return tuple(getattr(self, field.name) for field in fields(self))

    @cached_property
    def log_stands_for(self) -> Tensor:
        """Logarithm of `stands_for`, (n, M)."""
        return self.stands_for.log()

    @cached_property
    def unknown(self) -> Tensor:
        """The samples that are not `known`."""
        return (~self.known).nonzero().squeeze(1)

    def of_classes(self, values: Tensor) -> Tensor:
        """What there is for each class, (C,), for each candidate, (n, M)."""
        # not values[classes], whose gradient takes five times as long
        return values.index_select(0, self.classes.flatten()).view_as(self.classes)

    def of_pairs(self, values: Tensor) -> Tensor:
        """What there is for each class and label, (C, C), for each candidate and the given label, (n, M)."""
        places = self.classes * len(values) + self.classes[:, :1]
        return values.flatten().index_select(0, places.flatten()).view_as(places)

    def filled(self) -> ClassEvidence:
        """The evidence without the columns that are empty for all samples, to fit to: of few classes that is most.

        The last columns are then no longer the drawn classes.
        """
        used = (self.stands_for > 0).any(dim=0)
        named, density, stands_for = (
            column[:, used] for column in (self.classes, self.density, self.stands_for)
        )
        return ClassEvidence(named, density, stands_for, self.affinity, self.known)


def count_drawn(num_classes: int) -> int:
    """How many classes are drawn for each sample, the last columns: none where all are likely enough to be named."""
    return 0 if num_classes <= 1 + MOST_LIKELY else DRAWN


def find_candidates(
    labels: Tensor, similarities: Tensor, neighbours: Tensor, rows: Tensor | None = None
) -> Candidates:
    """Candidate classes of samples, by the votes of all of their neighbours, trusted or not.

    Args:
        labels: (N,) given labels in [0, C).
        similarities: (N, K) cosines to the neighbours, not increasing along a row.
        neighbours: (N, K) their sample numbers.
        rows: (n,) the samples wanted; None: all.
    """
    num_classes = int(labels.max()) + 1
    rows = torch.arange(len(labels), device=labels.device) if rows is None else rows
    parts = [
        _candidates_of(labels, similarities[part], neighbours[part], labels[part])
        for part in torch.split(rows, CHUNK)
    ]
    voted, given_voted, kernel = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    generator = torch.Generator().manual_seed(0)
    shape = len(labels), count_drawn(num_classes)
    drawn = torch.randint(num_classes, shape, generator=generator)[rows.cpu()].to(voted)
    return Candidates(
        samples=rows,
        voted=voted,
        given_voted=given_voted,
        drawn=drawn,
        neighbours=neighbours[rows],
        kernel=kernel,
        affinity=affinity(similarities)[rows],
    )


def affinity(similarities: Tensor) -> Tensor:
    """Similarity to the nearest neighbour, (N,), in interquartile ranges from the median.

    Where most are copies of others, range and median are those of the rest: copies tell of no distance.
    """
    nearest = similarities[:, 0]
    apart = nearest[nearest < 1 - COPY]
    ordered = apart if 0 < 2 * len(apart) < len(nearest) else nearest
    ordered = ordered.sort().values  # torch.quantile refuses more than 16 million numbers
    low, middle, high = (ordered[int(q * (len(ordered) - 1))] for q in (0.25, 0.5, 0.75))
    return (nearest - middle) / (high - low).clamp(min=1e-6)


def _candidates_of(
    labels: Tensor, similarities: Tensor, neighbours: Tensor, given: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Classes voted for (n, m), -1 if none, whether the given one is (n,), and kernel (n, K) of a chunk of samples."""
    kernel = ((similarities - similarities[:, :1]) / _TEMPERATURE).exp()
    # Equal labels side by side, the given one with no weight of its own among them: each run is a class.
    voted = torch.cat([labels[neighbours], given[:, None]], dim=1)  # (n, K + 1)
    ordered, order = voted.sort(dim=1)
    begins = torch.ones_like(ordered, dtype=torch.bool)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    run = torch.empty_like(order).scatter_(1, order, begins.cumsum(dim=1) - 1)  # (n, K + 1)
    class_of_run = torch.full_like(ordered, -1).scatter_(1, run, voted)
    votes = torch.full_like(kernel, -1.0)  # runs that are not there come last
    votes = torch.cat([votes, votes[:, :1]], dim=1).scatter_reduce_(
        1, run, torch.zeros_like(voted, dtype=votes.dtype), "amax"
    )
    votes.scatter_add_(1, run[:, :-1], kernel)
    own = votes.gather(1, run[:, -1:])
    votes.scatter_(1, run[:, -1:], torch.inf)  # the given class comes first
    most, best = votes.topk(min(MOST_VOTED, votes.shape[1]), dim=1)
    given_voted = (own > 0) & (own >= most[:, -1:])
    return class_of_run.gather(1, best), given_voted.squeeze(1), kernel


def weigh_candidates(
    candidates: Candidates, whitened: Whitened, labels: Tensor, trust: Tensor, rows: Tensor
) -> ClassEvidence:
    """Evidence for the candidates of some samples, by the trusted ones; a sample has no say on itself (`ClassBalls`).

    Considered are the given class, those with the most votes, the most likely others, and the drawn ones for the rest.
    Where to look at all classes would cost too much, there are no most likely others: where most labels are wrong, the
    right class is often not among those voted for, and what is among them is then believed too much.

    Neighbours have no say beyond the class means in whether a label is right: those of a wrong label often have the
    same wrong one, as images that look alike were labelled together, or were drawn together by a network that had
    learned their labels by heart.

    Args:
        candidates: of these samples and perhaps others.
        whitened: N samples, see `whiten`.
        labels: (N,) given labels.
        trust: (N,) weight of each sample, in [0, 1].
        rows: (n,) which rows of `candidates` are wanted.

    Returns:
        The evidence of n samples. O(n C D + N D) time; above 4,000 classes and 2^30 densities O(n M D + N D).
    """
    balls = ClassBalls(whitened, labels, trust)
    count = len(balls.mass)
    heard = torch.bincount(labels[trust > 0], minlength=count)
    every = count <= max(_EVERY // len(labels), _FETCH * (MOST_VOTED + DRAWN))
    found = []
    for part in torch.split(rows, max(1, min(CHUNK, _NUMBERS // count)) if every else CHUNK):
        samples, named, drawn = candidates.samples[part], candidates.voted[part], candidates.drawn[part]
        if every:
            density = balls.density(samples)  # (n, C)
            named = torch.cat([named, _most_likely(density, named)], dim=1)
            classes, stands_for = _and_drawn(named, drawn, count)
            density = density.gather(1, classes)
        else:
            classes, stands_for = _and_drawn(named, drawn, count)
            density = balls.density(samples, classes)
        found.append((classes, density, stands_for))
    classes, density, stands_for = (torch.cat(tensors) for tensors in zip(*found, strict=True))
    return ClassEvidence(
        classes,
        density,
        stands_for,
        candidates.affinity[rows],
        heard[classes[:, 0]] - (trust[candidates.samples[rows]] > 0).long() > 0,
    )


def _most_likely(density: Tensor, voted: Tensor) -> Tensor:
    """Classes of the greatest density (n, C) beside those voted for; (n, at most MOST_LIKELY), -1: no more."""
    given = voted[:, :1]
    others = density.scatter(1, torch.where(voted < 0, given, voted), -torch.inf)
    most, best = others.topk(min(MOST_LIKELY, density.shape[1] - 1), dim=1)
    return best.masked_fill(most == -torch.inf, -1)


def _and_drawn(named: Tensor, drawn: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Named classes (n, m), -1 for none, and the drawn ones (n, M); how many of all C each stands for."""
    there = named >= 0
    if (there.sum(dim=1) == num_classes).all():  # as where there are few: none is left to stand for
        new = torch.zeros_like(drawn, dtype=torch.bool)
    else:
        # A column at a time: all comparisons at once are (n, m, M) numbers, and take four times as long.
        new = drawn != named[:, :1]  # (n, M)
        for column in named[:, 1:].unbind(dim=1):
            new &= drawn != column[:, None]
    rest = (num_classes - there.sum(dim=1, keepdim=True)) / new.sum(dim=1, keepdim=True).clamp(min=1)
    classes = torch.cat([torch.where(there, named, named[:, :1]), drawn], dim=1)
    return classes, torch.cat([there.float(), rest * new], dim=1)
