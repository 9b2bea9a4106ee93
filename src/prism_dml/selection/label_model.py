"""How likely each class is for a sample, given what its neighbours say and the label that it was given."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from prism_dml.selection.candidates import ClassEvidence

_PRIOR = (0.0, 0.5, -3.0, -3.0, -1.0)  # of the parameters, below; of a Gaussian as wide as sqrt(1 / _STRENGTH)
_STRENGTH = 0.2
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

    Class k has the probability p_k ~ share_k^a exp(b cosine_k) and "no class of these" p_0 ~ exp(c - d affinity).
    The label is the true class with probability 1 - r, else any of the others alike; that of a sample of no class
    is any. a, b, c, d and the rate r are those that make the given labels most likely. As the labels are known, that
    needs no truth, and the beliefs are as calibrated as the model fits.

    Args:
        num_classes: number C of classes, at least 2.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
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
        step = math.ceil(len(evidence.alone) / _MOST_FITTED)
        return evidence[slice(None, None, step)]

    def _loss(self, parameters: Tensor, evidence: ClassEvidence) -> Tensor:
        prior = torch.tensor(_PRIOR, dtype=parameters.dtype)
        _, _, label = self._joint(parameters, evidence)
        penalty = _STRENGTH / 2 * ((parameters - prior) ** 2).sum() / len(label)
        return penalty - label.clamp(min=1e-30).log().mean()

    def _posterior(self, parameters: Tensor, evidence: ClassEvidence) -> Posterior:
        classes, nothing, label = self._joint(parameters, evidence)
        label = label.clamp(min=1e-30)
        return Posterior(classes / label[:, None], nothing / label)

    def _joint(self, parameters: Tensor, evidence: ClassEvidence) -> tuple[Tensor, Tensor, Tensor]:
        """Probability of each candidate (n, M) and of none (n,) with the given label, and of the label (n,)."""
        device = evidence.cosine.device
        power, slope, rate, nothing, distance = parameters.to(device)
        others = self.num_classes - 1
        scores = 2 * power.sigmoid() * evidence.log_share + softplus(slope) * 4 * evidence.cosine
        scores = scores + evidence.stands_for.log()  # (n, M), float64; -inf where the column is empty
        outside = nothing - softplus(distance) * evidence.affinity.clamp(-20.0, 0.0)  # (n,)
        # Of a class with no other member nobody knows what it looks like: like nothing else.
        given = torch.where(evidence.alone, outside, scores[:, 0])
        scores = torch.cat([given[:, None], scores[:, 1:], outside[:, None]], dim=1)
        prior = scores.softmax(dim=1)  # (n, M + 1)
        wrong = rate.sigmoid()
        classes = torch.cat([prior[:, :1] * (1 - wrong), prior[:, 1:-1] * wrong / others], dim=1)
        none = prior[:, -1] / self.num_classes
        return classes, none, classes.sum(dim=1) + none
