"""How likely each class is for a sample, given its density under the classes and the label that it was given."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from prism_dml.selection.candidates import DRAWN, ClassEvidence

# Of the parameters b (before softplus) and r, below: the middle of a Gaussian prior, and one over its variance. b is
# held to a slope of about 1, as where densities are right: of few samples that are all about equally clear, "all are
# hard", a slope near 0, explains wrong labels as well as r does. Of thousands whose labels are mostly wrong the two
# differ by less than the model is off, so b is held the firmer, the more there are; for a few hundred that is too firm.
_PRIOR, _STRENGTH = (0.5, -3.0), (1.0, 0.2)
_FIRMER_FROM, _FIRMEST = 250, 10.0  # samples from which on b's is more, in proportion, up to so many times
_FLIP_STRENGTH = (
    5.0  # of the prior of each flip's logarithm: as if seen some five times as often as any other
)
_PER_FLIP = (
    50  # samples for each pair of classes, from which on the pairs' own shares of wrong labels are fitted
)
_HALVINGS = 30  # of the interval that the rate is in
FAR = -4.0
"""Affinity (interquartile ranges from the median) at which a sample is as likely of no class as of one; Tukey's far
fence of a normal distribution is at -3.5."""
_MOST_OUTSIDE = 0.7  # probability of no class, however far: a far sample's label may agree with the evidence
_MOST_FITTED = 20_000  # samples that the parameters are fitted to: their errors are then far below others


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


class LabelModel:
    """A class for each sample from the evidence, and then, with some probability, a label that is wrong.

    Class k has the probability p_k ~ exp(b density_k); samples far from everything are of no class. The label is the
    true class k with probability 1 - r, else another class l with a probability f_kl: any alike, or, where there are
    few classes and many samples, more often those that it is mistaken for. b, r and f are those that make the given
    labels most likely. As the labels are known, that needs no truth.

    Where the evidence is weak, hard samples and wrong labels explain the same data; the likelihood then takes most for
    hard, and a rate known to be exceeded decides (`raise_rate`).

    Args:
        num_classes: number C of classes, at least 2.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.parameters = torch.tensor(_PRIOR, dtype=torch.float64)
        self.flips: Tensor | None = (
            None  # (C, C) logarithms of f_kl, up to a constant for each k; None: all alike
        )

    def fit(self, evidence: ClassEvidence) -> float:
        """Fit the parameters to n samples; returns the mean loss (negative log-likelihood of their labels)."""
        evidence = self._fitted_to(evidence)
        enough = len(evidence.density) >= _PER_FLIP * self.num_classes**2
        parameters = self.parameters.clone().requires_grad_(True)
        free = [parameters]
        if enough:
            start = torch.zeros(self.num_classes, self.num_classes, dtype=torch.float64)
            free.append((start if self.flips is None else self.flips.clone()).requires_grad_(True))
        optimizer = torch.optim.LBFGS(free, max_iter=100, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self._loss(parameters, free[1] if enough else None, evidence)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        with torch.enable_grad():
            optimizer.step(closure)  # type: ignore[no-untyped-call]
        self.parameters = parameters.detach()
        self.flips = free[1].detach() if enough else None
        return float(self._loss(self.parameters, self.flips, evidence))

    @torch.no_grad()
    def raise_rate(self, evidence: ClassEvidence, least: float) -> None:
        """Raise the rate r alone until the mean probability of a wrong label is at least `least`, in [0, 1).

        What the evidence is worth stays: fitted anew, it would be overrated, to make room for the wrong labels.
        """
        evidence = self._fitted_to(evidence)
        low, high = self.parameters[1].clone(), self.parameters.new_tensor(10.0)
        if 1 - self(evidence).classes[:, 0].mean() >= least:
            return
        for _ in range(_HALVINGS):
            self.parameters[1] = (low + high) / 2
            if 1 - self(evidence).classes[:, 0].mean() < least:
                low = self.parameters[1].clone()
            else:
                high = self.parameters[1].clone()

    @torch.no_grad()
    def __call__(self, evidence: ClassEvidence) -> Posterior:
        """Beliefs about n samples."""
        return self._posterior(self.parameters, evidence)

    @torch.no_grad()
    def prior(self, evidence: ClassEvidence) -> Tensor:
        """Probability (n, M) of each candidate before the label is seen, were all of some class."""
        return self._joint(self.parameters, self.flips, evidence)[2]

    @torch.no_grad()
    def confusion(self, evidence: ClassEvidence) -> Tensor | None:
        """How often class k is given label l, (C, C), float32; None where wrong labels are taken to be any alike.

        Between two answers. The likelihood, by which the rate is found, takes a sample for hard where people took one
        class for the other: too few wrong labels. Counting takes hard samples for wrong ones: too many. It counts a
        sample as of the likeliest of the classes that are at least as probable for it as they are, on average, for the
        samples under their label. Which class is taken for which is as counted, how often is the geometric mean.
        Source: the confident joint, Northcutt et al., "Confident Learning", JAIR 2021, eq. 1 and 2; the mean is ours.
        """
        if self.flips is None:
            return None
        labels, prior, count = evidence.classes[:, 0], self.prior(evidence), self.num_classes
        places = torch.arange(len(labels), device=prior.device)[:, None] * count + evidence.classes
        chances = prior.new_zeros(len(labels) * count).index_add_(0, places.flatten(), prior.flatten())
        chances = chances.view(-1, count)  # (n, C)
        members = torch.bincount(labels, minlength=count).clamp(min=1)
        own = chances.gather(1, labels[:, None]).squeeze(1)
        usual = chances.new_zeros(count).index_add_(0, labels, own) / members
        eligible = chances >= usual
        counted = eligible.any(dim=1)
        likeliest = chances.masked_fill(~eligible, -1).argmax(dim=1)
        joint = chances.new_zeros(count * count)
        joint.index_add_(0, (likeliest * count + labels)[counted], torch.ones_like(own[counted]))
        joint = joint.view(count, count)
        joint = joint / joint.sum(dim=0).clamp(min=1) * members  # under each label as many as have it
        right = torch.eye(count).to(joint)
        joint = torch.where(joint.sum(dim=1, keepdim=True) == 0, right, joint)  # never the likeliest
        found = 1 - self(evidence).classes[:, 0].mean()
        share = (found / (1 - joint.trace() / joint.sum()).clamp(min=1e-9)).clamp(0, 1).sqrt()
        return (right + share * (joint / joint.sum(dim=1, keepdim=True) - right)).float()

    def rate_error(self, evidence: ClassEvidence) -> float:
        """Standard error of the mean probability of a wrong label: of the parameters, and of n draws."""
        evidence = self._fitted_to(evidence)
        parameters = self.parameters.clone().requires_grad_(True)
        with torch.enable_grad():
            wrong = 1 - self._posterior(parameters, evidence).classes[:, 0]
            (slope,) = torch.autograd.grad(wrong.mean(), parameters)
            curvature = torch.autograd.functional.hessian(  # type: ignore[no-untyped-call]
                lambda values: self._loss(values, self.flips, evidence), parameters.detach()
            )
        covariance = torch.linalg.pinv(curvature, hermitian=True) / len(wrong)
        drawn = (wrong * (1 - wrong)).detach().mean() / len(wrong)
        return math.sqrt(float((slope @ covariance @ slope).clamp(min=0) + drawn))

    def _fitted_to(self, evidence: ClassEvidence) -> ClassEvidence:
        step = math.ceil(len(evidence.affinity) / _MOST_FITTED)
        return evidence[slice(None, None, step)]

    def _loss(self, parameters: Tensor, flips: Tensor | None, evidence: ClassEvidence) -> Tensor:
        prior, strength = (torch.tensor(pair, dtype=parameters.dtype) for pair in (_PRIOR, _STRENGTH))
        _, label, _ = self._joint(parameters, flips, evidence)
        strength[0] *= min(max(len(label) / _FIRMER_FROM, 1.0), _FIRMEST)
        penalty = (strength * (parameters - prior) ** 2).sum() / 2
        if flips is not None:
            penalty = penalty + _FLIP_STRENGTH / 2 * (flips**2).sum()
        return penalty / len(label) - label.log().mean()

    def _posterior(self, parameters: Tensor, evidence: ClassEvidence) -> Posterior:
        classes, label, prior = self._joint(parameters, self.flips, evidence)
        return Posterior(classes / label[:, None], prior[:, 0] >= prior[:, :-DRAWN].amax(dim=1))

    def _joint(
        self, parameters: Tensor, flips: Tensor | None, evidence: ClassEvidence
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Probability of each candidate with the label (n, M), of the label (n,), and of each candidate (n, M)."""
        slope, rate = parameters.to(evidence.density.device)
        scores = (
            softplus(slope) * evidence.density + evidence.stands_for.log()
        )  # (n, M); -inf: no such column
        # Nobody knows what a class without other members looks like: it is as probable as any.
        blank = scores[:, 1:].logsumexp(dim=1) - math.log(self.num_classes - 1)
        given = torch.where(evidence.known, scores[:, 0], blank)
        prior = torch.cat([given[:, None], scores[:, 1:]], dim=1).softmax(dim=1)
        outside = (2 * (FAR - evidence.affinity)).sigmoid().clamp(max=_MOST_OUTSIDE) * evidence.known  # (n,)
        wrong = rate.sigmoid()
        if flips is None:
            chance = (wrong / (self.num_classes - 1)).expand_as(prior)
        else:
            itself = torch.eye(self.num_classes, dtype=torch.bool, device=prior.device)
            flip = flips.to(prior).masked_fill(itself, -torch.inf).softmax(dim=1)
            chance = wrong * flip[evidence.classes, evidence.classes[:, :1]]
        chance = torch.cat([(1 - wrong).expand_as(prior[:, :1]), chance[:, 1:]], dim=1)
        classes = prior * chance * (1 - outside[:, None])
        label = classes.sum(dim=1) + outside / self.num_classes
        return classes, label.clamp(min=1e-30), prior
