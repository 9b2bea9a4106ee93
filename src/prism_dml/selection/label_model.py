"""How likely each class is for a sample, given its density under the classes and the label that it was given."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from prism_dml.selection.candidates import ClassEvidence, count_drawn
from prism_dml.selection.confident_joint import confident_joint, expected_pairs
from prism_dml.selection.draw import some

# Of the parameters b (before softplus) and r, below: one over the variance of a Gaussian prior. b is held to about the
# slope that it would have if densities were right: of few samples that are all about equally clear, "all are hard", a
# slope near 0, explains wrong labels as well as r does. Of thousands whose labels are mostly wrong the two differ by
# less than the model is off, so b is held the firmer, the more there are; for a few hundred that is too firm.
_STRENGTH = 1.0, 0.2
_LOGIT = -3.0  # the middle of r's
_FIRMER_FROM, _FIRMEST = 250, 10.0  # samples from which on b's is more, in proportion, up to so many times
# Of the prior of what a class adds to r, for each class there is: where these are few, labels that are wrong in some
# only are else taken for those of hard classes; among many a wrong label stands out by itself. And more by the cube of
# how much smaller a class is than the mean: of one with hardly a member it could be said that all near it are its own.
_CLASS_STRENGTH = 0.2
_FLIP_STRENGTH = 5.0  # of the prior of each flip's logarithm: as if seen some five times as often
_PER_FLIP = 25  # samples for each pair of classes, from which on pairs have their own shares of wrong labels
_SETTLED = 1e-6  # change of the mean loss that says nothing
_SEEN_EACH = 5.0  # samples of each class with each label, before they are counted: no mistake is impossible
_LEAST_MISSED = 1e-6  # of the labels of a class, so that there is an interval
_HALVINGS = 30  # of the interval that the rate is in
FAR = -4.0
"""Affinity (interquartile ranges from the median) at which a sample is as likely of no class as of one; Tukey's far
fence of a normal distribution is at -3.5."""
_MOST_OUTSIDE = 0.7  # probability of no class, however far: a far sample's label may agree with the evidence
_MOST_FITTED = 20_000  # samples that the parameters are fitted to: their errors are then far below others


def learns_pairs(num_samples: int, num_classes: int) -> bool:
    """Whether each pair of classes gets a share of wrong labels of its own: of few classes with many samples each."""
    return min(num_samples, _MOST_FITTED) >= _PER_FLIP * num_classes**2


@dataclass(frozen=True)
class Posterior:
    """What is believed of n samples and their M candidates after the given label is seen.

    Attributes:
        classes: (n, M) probability that the sample belongs to each candidate, the given class first; what is missing
            to 1 is that of no class.
        wins: (n,) bool, whether the given class was the most probable before the label was seen.
    """

    classes: Tensor
    wins: Tensor

    @property
    def knowledge(self) -> Tensor:
        """How many of the right labels the evidence alone would have given, () in [0, 1]."""
        return (self.wins.sum() / self.classes[:, 0].sum().clamp(min=1e-9)).clamp(max=1)

    def trust(self) -> Tensor:
        """Weight (n,) in [0, 1] of each sample as a member of its given class.

        The probability that the label is right, where the evidence knows half of the classes or more: where it hardly
        does, doubts are mostly chance, and would confirm themselves.
        """
        return 1 - (2 * self.knowledge).clamp(max=1) * (1 - self.classes[:, 0])


class _Parameters(NamedTuple):
    """What is fitted.

    Attributes:
        all_classes: (2,) b before softplus, and the logit of r.
        each_class: (C,) what is added to that logit.
        flips: (C, C) logarithms of f_kl, up to a constant for each k; None: all alike.
    """

    all_classes: Tensor
    each_class: Tensor
    flips: Tensor | None = None


class LabelModel:
    """A class for each sample from the evidence, and then, with some probability, a label that is wrong.

    Class k has the probability p_k ~ exp(b density_k); samples far from everything are of no class. The label is the
    true class k with probability 1 - r_k, else another class l with a probability f_kl: any alike, or, where there are
    few classes and many samples, more often those that it is mistaken for. r_k is about r, the more so the more classes
    there are and the fewer members this one has. b, r, r_k and f are those that make the given labels most likely. As
    these are known, that needs no truth. Which classes are mistaken for which is then better counted (`count_pairs`).

    Where the evidence is weak, hard samples and wrong labels explain the same data; the likelihood then takes most for
    hard, and a rate known to be exceeded decides (`raise_rate`).

    Args:
        num_classes: number C of classes, at least 2.
        slope: b as it is taken to be before anything is seen, in (0, 1]; 1: means and spread are known exactly.
    """

    def __init__(self, num_classes: int, slope: float = 1.0) -> None:
        self.num_classes = num_classes
        self._middle = torch.tensor([math.log(math.expm1(slope)), _LOGIT], dtype=torch.float64)
        self.parameters = _Parameters(self._middle, torch.zeros(num_classes, dtype=torch.float64))
        self._joint_counts: Tensor | None = None  # (C, C) see `confident_joint`
        self._pairs: Tensor | None = None  # (C, C) how often class k is given label l; None: as fitted

    def fit(self, evidence: ClassEvidence) -> float:
        """Fit the parameters to n samples; returns the mean loss, of likelihood and prior."""
        evidence = self._fitted_to(evidence).filled()
        flips = self.parameters.flips
        if not learns_pairs(len(evidence.density), self.num_classes):
            flips = None
        elif flips is None:
            flips = torch.zeros(self.num_classes, self.num_classes, dtype=torch.float64)
        start = self.parameters._replace(flips=flips)
        free = [values.clone().requires_grad_(True) for values in start if values is not None]
        parameters = _Parameters(*free)
        optimizer = torch.optim.LBFGS(
            free, max_iter=100, history_size=20, tolerance_change=_SETTLED, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self._loss(parameters, evidence)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        with torch.enable_grad():
            optimizer.step(closure)  # type: ignore[no-untyped-call]
        self._joint_counts = self._pairs = None
        fitted = _Parameters(*(values.detach() for values in free))
        self.parameters = _centred(fitted, self._members(evidence))
        return float(self._loss(self.parameters, evidence))

    @torch.no_grad()
    def raise_rate(self, evidence: ClassEvidence, least: float) -> None:
        """Raise the rate r alone until the mean probability of a wrong label is at least `least`, in [0, 1).

        What the evidence is worth stays: fitted anew, it would be overrated, to make room for the wrong labels.
        """
        self._joint_counts = self._pairs = None  # of the rate before
        evidence = self._fitted_to(evidence)
        slope, start = self.parameters.all_classes
        low, high = start, start.new_tensor(10.0)
        if 1 - self(evidence).classes[:, 0].mean() >= least:
            return
        for _ in range(_HALVINGS):
            rate = (low + high) / 2
            self.parameters = self.parameters._replace(all_classes=torch.stack([slope, rate]))
            if 1 - self(evidence).classes[:, 0].mean() < least:
                low = rate
            else:
                high = rate

    @torch.no_grad()
    def count_pairs(self, evidence: ClassEvidence) -> None:
        """Where pairs of classes were fitted, take from counting instead which class is mistaken for which.

        The mean probability of a wrong label stays as fitted, see `confusion`; counting says which labels they are.
        After `raise_rate`.
        """
        if self.parameters.flips is None:
            return
        evidence = self._fitted_to(evidence)
        wrong = 1 - self(evidence).classes[:, 0].mean()
        prior, outside = self._prior(self.parameters.all_classes, evidence)
        self._joint_counts = confident_joint(prior, evidence.classes, self.num_classes) + _SEEN_EACH
        right, counted = torch.eye(self.num_classes).to(self._joint_counts), self._counted(self._joint_counts)
        known, label = self._explain(prior, outside, evidence.of_pairs(right))
        doubted, label_doubted = self._explain(prior, outside, evidence.of_pairs(counted))

        def lost(share: float) -> Tensor:
            """Mean probability of a wrong label by a share of the mistakes that were counted; both are linear in it."""
            right_ones = known[:, 0].lerp(doubted[:, 0], share)
            return 1 - (right_ones / label.lerp(label_doubted, share)).mean()

        low, high = 0.0, 1 / max(float(1 - counted.diagonal().min()), _LEAST_MISSED)
        if lost(high) < wrong:  # where hardly any mistakes were counted: those that were fitted stay
            return
        for _ in range(_HALVINGS):
            share = (low + high) / 2
            if lost(share) < wrong:
                low = share
            else:
                high = share
        self._pairs = right.lerp(counted, low)

    @torch.no_grad()
    def __call__(self, evidence: ClassEvidence) -> Posterior:
        """Beliefs about n samples."""
        return self._posterior(self.parameters, evidence, self._pairs)

    @torch.no_grad()
    def prior(self, evidence: ClassEvidence) -> Tensor:
        """Probability (n, M) of each candidate before the label is seen, were all of some class."""
        return self._prior(self.parameters.all_classes, evidence)[0]

    @torch.no_grad()
    def confusion(self) -> Tensor | None:
        """How often class k is given label l, (C, C), float32; None where wrong labels are taken to be any alike.

        Between two answers. The likelihood, by which the rate is found, takes a sample for hard where people took one
        class for the other: too few wrong labels. Counting takes hard samples for wrong ones: too many. Which class is
        taken for which is as counted (`confident_joint`), how often is the geometric mean of both, for each class.
        """
        if self._joint_counts is None:
            return None
        return self._counted(self._joint_counts).float()

    def rate_error(self, evidence: ClassEvidence) -> float:
        """Standard error of the mean probability of a wrong label: of what all classes share, and of n draws."""
        evidence = self._fitted_to(evidence)
        common = self.parameters.all_classes.clone().requires_grad_(True)
        with torch.enable_grad():
            wrong = 1 - self._posterior(self.parameters._replace(all_classes=common), evidence).classes[:, 0]
            (slope,) = torch.autograd.grad(wrong.mean(), common)
            curvature = torch.autograd.functional.hessian(  # type: ignore[no-untyped-call]
                lambda values: self._loss(self.parameters._replace(all_classes=values), evidence),
                common.detach(),
            )
        covariance = torch.linalg.pinv(curvature, hermitian=True) / len(wrong)
        drawn = (wrong * (1 - wrong)).detach().mean() / len(wrong)
        return math.sqrt(float((slope @ covariance @ slope).clamp(min=0) + drawn))

    def _counted(self, counts: Tensor) -> Tensor:
        """How often each class has each label, (C, C), by counting and the fitted rates; see `confusion`."""
        wrong = (self.parameters.all_classes[1] + self.parameters.each_class).sigmoid()
        return expected_pairs(counts, wrong.to(counts))

    def _fitted_to(self, evidence: ClassEvidence) -> ClassEvidence:
        return evidence[some(len(evidence.affinity), _MOST_FITTED, evidence.affinity.device)]

    def _loss(self, parameters: _Parameters, evidence: ClassEvidence) -> Tensor:
        members = self._members(evidence)
        parameters = _centred(parameters, members)
        common, each_class, flips = parameters
        strength = torch.tensor(_STRENGTH, dtype=common.dtype)
        prior_of_class, outside = self._prior(common, evidence)
        _, label = self._explain(prior_of_class, outside, self._flipped(parameters, evidence))
        strength[0] *= min(max(len(label) / _FIRMER_FROM, 1.0), _FIRMEST)
        penalty = (strength * (common - self._middle) ** 2).sum()
        smaller = (members.mean() / members.clamp(min=1)).clamp(min=1)
        penalty = penalty + _CLASS_STRENGTH * self.num_classes * (smaller**3 * each_class**2).sum()
        if flips is not None:
            penalty = penalty + _FLIP_STRENGTH * (flips**2).sum()
        return penalty / (2 * len(label)) - label.log().mean()

    def _members(self, evidence: ClassEvidence) -> Tensor:
        """Number of samples given each class, (C,) float64."""
        given = torch.bincount(evidence.classes[:, 0], minlength=self.num_classes)
        return given.to(self.parameters.each_class)

    def _posterior(
        self, parameters: _Parameters, evidence: ClassEvidence, pairs: Tensor | None = None
    ) -> Posterior:
        prior, outside = self._prior(parameters.all_classes, evidence)
        seen = self._flipped(parameters, evidence) if pairs is None else evidence.of_pairs(pairs)
        classes, label = self._explain(prior, outside, seen)
        named = prior.shape[1] - count_drawn(self.num_classes)
        return Posterior(classes / label[:, None], prior[:, 0] >= prior[:, :named].amax(dim=1))

    def _prior(self, common: Tensor, evidence: ClassEvidence) -> tuple[Tensor, Tensor]:
        """Probability of each candidate (n, M), were all of some class, and of no class (n,)."""
        slope = softplus(common[0].to(evidence.density.device))
        scores = slope * evidence.density + evidence.log_stands_for  # (n, M); -inf: no such column
        # Nobody knows what a class without other members looks like: it is as probable as any.
        blank = scores[evidence.unknown, 1:].logsumexp(dim=1) - math.log(self.num_classes - 1)
        scores[evidence.unknown, 0] = blank
        outside = (2 * (FAR - evidence.affinity)).sigmoid().clamp(max=_MOST_OUTSIDE) * evidence.known
        return scores.softmax(dim=1), outside

    def _explain(self, prior: Tensor, outside: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Probability of each candidate together with the given label (n, M), and of the label (n,)."""
        classes = prior * seen * (1 - outside[:, None])
        return classes, (classes.sum(dim=1) + outside / self.num_classes).clamp(min=1e-30)

    def _flipped(self, parameters: _Parameters, evidence: ClassEvidence) -> Tensor:
        """How often each candidate class has the given label, (n, M), as fitted."""
        common, each_class, flips = parameters
        wrong = (common[1] + each_class).to(evidence.density.device).sigmoid()  # (C,)
        if flips is None:
            seen = evidence.of_classes(wrong / (self.num_classes - 1))
            return torch.cat([1 - wrong[evidence.classes[:, :1]], seen[:, 1:]], dim=1)
        itself = torch.eye(self.num_classes, dtype=torch.bool, device=wrong.device)
        flip = flips.to(wrong).masked_fill(itself, -torch.inf).softmax(dim=1)
        return evidence.of_pairs(wrong[:, None] * flip + torch.diag(1 - wrong))


def _centred(parameters: _Parameters, members: Tensor) -> _Parameters:
    """What classes add to r is nothing on average over the samples, (C,) of each class: r is that of all labels.

    Otherwise r would be that of the many classes that are small, which no prior holds to that of the others.
    """
    each_class = parameters.each_class
    return parameters._replace(each_class=each_class - (each_class * members).sum() / members.sum())
