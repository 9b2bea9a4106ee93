"""How likely each class is for a sample, given what its neighbours say and the label that it was given."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from prism_dml.selection.candidates import DRAWN, ClassEvidence

_PRIOR = (0.0, 0.5, -3.0)  # of the parameters, below; of a Gaussian as wide as sqrt(1 / _STRENGTH)
_STRENGTH = 0.2
_BARRIER = 100.0  # weight of the square by which the rate falls short of its least value
FAR = -4.0
"""Affinity (interquartile ranges from the median) at which a sample is as likely of no class as of one; Tukey's far
fence of a normal distribution is at -3.5."""
_MOST_OUTSIDE = 0.7  # probability of no class, however far: a far sample's label may agree with the evidence
_MOST_FITTED = 50_000  # samples that the parameters are fitted to: their errors are then far below others


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


class LabelModel:
    """A class for each sample from the evidence, and then, with some probability, a label that is wrong.

    Class k has the probability p_k ~ share_k^a exp(b density_k); samples far from everything are of no class. The label
    is the true class with probability 1 - r, else any of the others alike; of a sample of no class, any class. a, b and
    the rate r are those that make the given labels most likely. As the labels are known, that needs no truth, and the
    beliefs are as calibrated as the model fits.

    Where the evidence is weak, hard samples and wrong labels explain the same data; then a rate known to be
    exceeded (`least`) decides.

    Args:
        num_classes: number C of classes, at least 2.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes, self.least = num_classes, 0.0
        self.parameters = torch.tensor(_PRIOR, dtype=torch.float64)

    def fit(self, evidence: ClassEvidence) -> float:
        """Fit the parameters to n samples; returns the mean loss (negative log-likelihood of their labels)."""
        evidence = self._fitted_to(evidence)
        parameters = self.parameters.clone().requires_grad_(True)
        optimizer = torch.optim.LBFGS([parameters], max_iter=50, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self._loss(parameters, evidence)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        with torch.enable_grad():
            optimizer.step(closure)  # type: ignore[no-untyped-call]
        self.parameters = parameters.detach()
        return float(self._loss(self.parameters, evidence))

    @torch.no_grad()
    def __call__(self, evidence: ClassEvidence) -> Posterior:
        """Beliefs about n samples."""
        return self._posterior(self.parameters, evidence)

    def rate_error(self, evidence: ClassEvidence) -> float:
        """Standard error of the mean probability of a wrong label: of the parameters, and of n draws."""
        evidence = self._fitted_to(evidence)
        parameters = self.parameters.clone().requires_grad_(True)
        with torch.enable_grad():
            wrong = 1 - self._posterior(parameters, evidence).classes[:, 0]
            (slope,) = torch.autograd.grad(wrong.mean(), parameters)
            curvature = torch.autograd.functional.hessian(  # type: ignore[no-untyped-call]
                lambda values: self._loss(values, evidence), parameters.detach()
            )
        covariance = torch.linalg.pinv(curvature, hermitian=True) / len(wrong)
        drawn = (wrong * (1 - wrong)).detach().mean() / len(wrong)
        return math.sqrt(float((slope @ covariance @ slope).clamp(min=0) + drawn))

    def _fitted_to(self, evidence: ClassEvidence) -> ClassEvidence:
        step = math.ceil(len(evidence.affinity) / _MOST_FITTED)
        return evidence[slice(None, None, step)]

    def _loss(self, parameters: Tensor, evidence: ClassEvidence) -> Tensor:
        prior = torch.tensor(_PRIOR, dtype=parameters.dtype)
        classes, label, _ = self._joint(parameters, evidence)
        wrong = 1 - (classes[:, 0] / label).mean()
        penalty = _STRENGTH / 2 * ((parameters - prior) ** 2).sum() / len(label)
        return penalty + _BARRIER * (self.least - wrong).clamp(min=0) ** 2 - label.log().mean()

    def _posterior(self, parameters: Tensor, evidence: ClassEvidence) -> Posterior:
        classes, label, prior = self._joint(parameters, evidence)
        return Posterior(classes / label[:, None], prior[:, 0] >= prior[:, :-DRAWN].amax(dim=1))

    def _joint(self, parameters: Tensor, evidence: ClassEvidence) -> tuple[Tensor, Tensor, Tensor]:
        """Probability of each candidate with the label (n, M), of the label (n,), and of each candidate (n, M)."""
        power, slope, rate = parameters.to(evidence.density.device)
        scores = 2 * power.sigmoid() * evidence.log_share + softplus(slope) * evidence.density
        scores = scores + evidence.stands_for.log()  # (n, M), float64; -inf where the column is empty
        # Nobody knows what a class without other members looks like: it is as probable as any.
        blank = scores[:, 1:].logsumexp(dim=1) - math.log(self.num_classes - 1)
        scores = torch.cat([torch.where(evidence.known, scores[:, 0], blank)[:, None], scores[:, 1:]], dim=1)
        prior = scores.softmax(dim=1)
        outside = (2 * (FAR - evidence.affinity)).sigmoid().clamp(max=_MOST_OUTSIDE) * evidence.known  # (n,)
        wrong = rate.sigmoid()
        chance = (wrong / (self.num_classes - 1)).expand_as(prior).clone()
        chance[:, 0] = 1 - wrong
        classes = prior * chance * (1 - outside[:, None])
        label = classes.sum(dim=1) + outside / self.num_classes
        return classes, label.clamp(min=1e-30), prior
