"""How likely each class is for a sample, given what its neighbours say and the label that it was given."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from prism_dml.selection.candidates import ClassEvidence

_PRIOR = (0.0, 0.5, -3.0)  # of the parameters, below; of a Gaussian as wide as sqrt(1 / _STRENGTH)
_STRENGTH = 0.2
_BARRIER = 100.0
FAR = -4.0
"""Affinity at which a sample is as likely of no class as of one: interquartile ranges from the median; Tukey's far fence
of a normal distribution is at -3.5."""
_MOST_OUTSIDE = 0.7  # probability of no class, however far: a far sample's label may agree with the evidence
_MOST_FITTED = 50_000  # samples that the parameters are fitted to: their errors are then far below others


@dataclass(frozen=True)
class Posterior:
    """What is believed of n samples and their M candidates after the given label is seen.

    Attributes:
        classes: (n, M) probability that the sample belongs to each candidate, the given class first.
        nothing: (n,) probability that it belongs to none of them; the rest to 1.
    """

    classes: Tensor
    nothing: Tensor


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
            loss = optimizer.step(closure)
            self.parameters = parameters.detach()
            return float(self._loss(self.parameters, evidence) if loss is not None else math.nan)

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
        classes, _, label = self._joint(parameters, evidence)
        label = label.clamp(min=1e-30)
        wrong = 1 - (classes[:, 0] / label).mean()
        penalty = _STRENGTH / 2 * ((parameters - prior) ** 2).sum() / len(label)
        return penalty + _BARRIER * (self.least - wrong).clamp(min=0) ** 2 - label.log().mean()

    def _posterior(self, parameters: Tensor, evidence: ClassEvidence) -> Posterior:
        classes, nothing, label = self._joint(parameters, evidence)
        label = label.clamp(min=1e-30)
        return Posterior(classes / label[:, None], nothing / label)

    def _joint(self, parameters: Tensor, evidence: ClassEvidence) -> tuple[Tensor, Tensor, Tensor]:
        """Probability of each candidate (n, M) and of none (n,) with the given label, and of the label (n,)."""
        power, slope, rate = parameters.to(evidence.density.device)
        scores = 2 * power.sigmoid() * evidence.log_share + softplus(slope) * evidence.density
        prior = (scores + evidence.stands_for.log()).softmax(dim=1)  # (n, M), float64; 0 where the column is empty
        outside = (2 * (FAR - evidence.affinity)).sigmoid().clamp(max=_MOST_OUTSIDE)  # (n,)
        wrong = rate.sigmoid()
        chance = torch.full_like(prior, 0.0) + wrong / (self.num_classes - 1)
        chance[:, 0] = 1 - wrong
        classes = prior * chance * (1 - outside[:, None])
        nothing = outside / self.num_classes
        return classes, nothing, classes.sum(dim=1) + nothing
