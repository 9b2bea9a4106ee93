"""How likely each class is for a sample, given its density under the classes and the label that it was given."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import softplus

from prism_dml.selection.candidates import ClassEvidence, count_drawn
from prism_dml.selection.confident_joint import confident_joint, expected_pairs, pairs_as_often
from prism_dml.selection.draw import some
from prism_dml.selection.mistakes import AnyAlike, ByPair, ByPartner, Mistakes
from prism_dml.selection.noise_parameters import NoiseParameters
from prism_dml.selection.partners import cost_of_partners, find_partners
from prism_dml.selection.posterior import Posterior, explain

_LOGIT = -3.0  # the middle of the prior of r's
_PER_FLIP = 25  # samples for each pair of classes, from which on pairs have their own shares of wrong labels
_SETTLED = 1e-6  # change of the mean loss that says nothing
_ANOTHER = 1e-3  # nats a label, by which a second maximum is higher: else both are the same
_SEEN_EACH = 5.0  # samples of each class with each label, before they are counted: no mistake is impossible
_FEWEST = 0.5  # members of a class: that there are none may be by chance
_HALVINGS = 30  # of the interval that the rate is in
FAR = -4.0
"""Affinity (interquartile ranges from the median) at which a sample is as likely of no class as of one; Tukey's far
fence of a normal distribution is at -3.5."""
_MOST_OUTSIDE = 0.7  # probability of no class, however far: a far sample's label may agree with the evidence
_MOST_FITTED = 20_000  # samples that the parameters are fitted to: their errors are then far below others
# Of what partners must gain: so much they do before anything is fitted to them, if they are there.
_AT_ONCE = 0.5


def learns_pairs(num_samples: int, num_classes: int) -> bool:
    """Whether each pair of classes gets a share of wrong labels of its own: of few classes with many samples each."""
    return min(num_samples, _MOST_FITTED) >= _PER_FLIP * num_classes**2


class LabelModel:
    """A class for each sample from the evidence, and then, with some probability, a label that is wrong.

    Class k has the probability p_k ~ m_k exp(b density_k); samples far from everything are of no class. m_k are the
    members of the class, as far as known, if these make the labels so much more likely that it is not by chance, else
    1: without them rare classes seem to be mistaken for frequent ones. The label is the true class k with probability
    1 - r_k, else another class l with a probability f_kl: any alike, or, where there are few classes and many samples,
    more often those that it is mistaken for. r_k is about r, the more so the more classes there are and the fewer
    members this one has. b, r, r_k and f are those that make the given labels most likely. As these are known, that
    needs no truth. Which classes are mistaken for which is then better counted (`count_pairs`).
    Where there are too few samples for that, each class may have one partner whose label a share of it is given before
    all this, s_k: if that makes the labels so much more likely that it is not by chance (`cost_of_partners`).

    Where the evidence is weak, hard samples and wrong labels explain the same data; the likelihood then takes most for
    hard, and a rate known to be exceeded decides (`raise_rate`).

    Args:
        num_classes: number C of classes, at least 2.
        slope: b as it is taken to be before anything is seen, in (0, 1]; 1: means and spread are known exactly.
    """

    def __init__(self, num_classes: int, slope: float = 1.0) -> None:
        self.num_classes = num_classes
        middle = torch.tensor([math.log(math.expm1(slope)), _LOGIT], dtype=torch.float64)
        self.parameters = NoiseParameters(middle, middle, torch.zeros(num_classes, dtype=torch.float64))
        self._log_members: Tensor | None = None  # (C,) logarithms of m_k; None: all are 1
        self._joint_counts: Tensor | None = None  # (C, C) see `confident_joint`
        self._pairs: Tensor | None = None  # (C, C) how often class k is given label l; None: as fitted

    def fit(self, evidence: ClassEvidence) -> float:
        """Fit the parameters to n samples; returns the mean loss: likelihood, prior, what partners and members cost."""
        evidence = self.fitted_to(evidence).filled()
        members = self._expected_members(evidence)
        self._joint_counts = self._pairs = self._log_members = None
        before = self.parameters.with_partners(None)
        pairs = learns_pairs(len(evidence.density), self.num_classes)
        start = before.with_flips() if pairs else replace(before, flips=None)
        self.parameters = self._fitted_from_both(start, evidence)
        self._count_members(start, evidence, members)
        if not pairs:
            self._find_partners(before, evidence)
        cost = cost_of_partners(len(evidence.density), self.num_classes) * self.partnered
        cost += self._cost_of_members(evidence) * (self._log_members is not None)
        return float(self._loss(self.parameters, evidence)) + cost / len(evidence.density)

    @torch.no_grad()
    def raise_rate(self, evidence: ClassEvidence, least: float) -> None:
        """Raise the rate r alone until the mean probability of a wrong label is at least `least`, in [0, 1).

        What the evidence is worth stays: fitted anew, it would be overrated, to make room for the wrong labels.
        """
        self._joint_counts = self._pairs = None  # of the rate before
        evidence = self.fitted_to(evidence)
        slope, start = self.parameters.all_classes
        low, high = start, start.new_tensor(10.0)
        if 1 - self(evidence).classes[:, 0].mean() >= least:
            return
        for _ in range(_HALVINGS):
            rate = (low + high) / 2
            self.parameters = replace(self.parameters, all_classes=torch.stack([slope, rate]))
            if 1 - self(evidence).classes[:, 0].mean() < least:
                low = rate
            else:
                high = rate

    @torch.no_grad()
    def count_pairs(self, evidence: ClassEvidence) -> None:
        """Where each pair of classes was fitted, take from counting instead which class is mistaken for which.

        The mean probability of a wrong label stays as fitted, see `mistakes`; counting says which labels they are.
        After `raise_rate`.
        """
        if self.parameters.flips is None:
            return
        evidence = self.fitted_to(evidence)
        wrong = 1 - self(evidence).classes[:, 0].mean()
        prior, outside = self._prior(self.parameters.all_classes, evidence)
        self._joint_counts = confident_joint(prior, evidence.classes, self.num_classes) + _SEEN_EACH
        self._pairs = pairs_as_often(wrong, self._counted(self._joint_counts), prior, outside, evidence)

    @torch.no_grad()
    def __call__(self, evidence: ClassEvidence) -> Posterior:
        """Beliefs about n samples."""
        return self._posterior(self.parameters, evidence, self._pairs)

    @torch.no_grad()
    def prior(self, evidence: ClassEvidence) -> Tensor:
        """Probability (n, M) of each candidate before the label is seen, were all of some class."""
        return self._prior(self.parameters.all_classes, evidence)[0]

    @torch.no_grad()
    def mistakes(self, rate: float, device: torch.device) -> Mistakes:
        """How often class k is given label l, float32; where any is given alike, so that so many are wrong in all.

        Of pairs of classes that is between two answers. The likelihood, by which the rate is found, takes a sample for
        hard where people took one class for the other: too few wrong labels. Counting takes hard samples for wrong
        ones: too many. Which class is taken for which is as counted (`confident_joint`), how often is the geometric
        mean of both, for each class.
        """
        if self._joint_counts is not None:
            return ByPair(self._counted(self._joint_counts).float().to(device))
        partners, shares = self.parameters.partners, self.parameters.given_to_partner().float()
        if partners is None:
            return AnyAlike(rate)
        alike = float(self.parameters.all_classes[1].sigmoid())
        return ByPartner(alike, partners.to(device), shares.to(device))

    @property
    def partnered(self) -> bool:
        """Whether classes were found to have partners."""
        return self.parameters.partners is not None

    def rate_error(self, evidence: ClassEvidence) -> float:
        """Standard error of the mean probability of a wrong label: of what all classes share, and of n draws."""
        evidence = self.fitted_to(evidence)
        common = self.parameters.common().requires_grad_(True)
        with torch.enable_grad():
            wrong = 1 - self._posterior(self.parameters.with_common(common), evidence).classes[:, 0]
            (slope,) = torch.autograd.grad(wrong.mean(), common)
            curvature = torch.autograd.functional.hessian(  # type: ignore[no-untyped-call]
                lambda values: self._loss(self.parameters.with_common(values), evidence), common.detach()
            )
        covariance = torch.linalg.pinv(curvature, hermitian=True) / len(wrong)
        drawn = (wrong * (1 - wrong)).detach().mean() / len(wrong)
        return math.sqrt(float((slope @ covariance @ slope).clamp(min=0) + drawn))

    def fitted_to(self, evidence: ClassEvidence) -> ClassEvidence:
        """The samples that parameters are fitted to, 20,000 at most."""
        return evidence[some(len(evidence.affinity), _MOST_FITTED, evidence.affinity.device)]

    def _fitted_from_both(self, start: NoiseParameters, evidence: ClassEvidence) -> NoiseParameters:
        """The same as `_fitted`; where pairs of classes have shares that are all alike yet, begun as counted, too.

        The likelihood has more than one maximum then. That a class is often taken for one other is as far from all
        mistakes being alike as from none: begun there, both classes look hard, and no label wrong.
        """
        fitted = self._fitted(start, evidence)
        if start.flips is None or start.flips.any():
            return fitted
        prior, _ = self._prior(start.all_classes, evidence)
        counts = confident_joint(prior, evidence.classes, self.num_classes) + _SEEN_EACH
        counted = self._fitted(start.with_pairs(counts), evidence)
        gained = float(self._loss(fitted, evidence)) - float(self._loss(counted, evidence))
        return counted if gained > _ANOTHER else fitted

    def _fitted(self, start: NoiseParameters, evidence: ClassEvidence) -> NoiseParameters:
        """What makes the given labels most likely, together with the prior."""
        free = start.free()
        optimizer = torch.optim.LBFGS(
            free, max_iter=100, history_size=20, tolerance_change=_SETTLED, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self._loss(start.at(free), evidence)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        with torch.enable_grad():
            optimizer.step(closure)  # type: ignore[no-untyped-call]
        return start.at([values.detach() for values in free]).centred(self._members(evidence))

    @torch.no_grad()
    def _find_partners(self, before: NoiseParameters, evidence: ClassEvidence) -> None:
        """Give each class a partner, if that makes the labels so much more likely that it is not by chance.

        They are found by what was held of the evidence before it was fitted without any: a class that is taken for
        another makes both look hard then, and all evidence vague.
        """
        prior, _ = self._prior(before.all_classes, evidence)
        members = self._members(evidence).to(prior.device)
        start = self.parameters.with_partners(find_partners(prior, evidence, members))
        cost = cost_of_partners(len(prior), self.num_classes) / len(prior)
        alone = float(self._loss(self.parameters, evidence))
        # Where there are none, that shows before anything is fitted to them, which would take most of the time.
        if alone - float(self._loss(start, evidence)) > _AT_ONCE * cost:
            partnered = self._fitted(start, evidence)
            if alone - float(self._loss(partnered, evidence)) > cost:
                self.parameters = partnered

    def _counted(self, counts: Tensor) -> Tensor:
        """How often each class has each label, (C, C), by counting and the fitted rates; see `mistakes`."""
        return expected_pairs(counts, self.parameters.wrong().to(counts))

    def _loss(self, parameters: NoiseParameters, evidence: ClassEvidence) -> Tensor:
        members = self._members(evidence)
        parameters = parameters.centred(members)
        prior, outside = self._prior(parameters.all_classes, evidence)
        _, label = explain(prior, outside, parameters.seen(evidence), self.num_classes)
        return parameters.penalty(members, len(label)) / (2 * len(label)) - label.log().mean()

    @torch.no_grad()
    def _count_members(self, start: NoiseParameters, evidence: ClassEvidence, members: Tensor) -> None:
        """Let the members of the classes, (C,), count, if that makes the labels so much more likely.

        Where classes are even, that shows before anything is fitted. Where they are not, what the fit without them
        makes of it decides: labels that are given to one class by mistake make it look frequent, too.
        """
        cost = self._cost_of_members(evidence) / len(evidence.density)
        unfitted, alone = (float(self._loss(parameters, evidence)) for parameters in (start, self.parameters))
        self._log_members = members.log()
        if float(self._loss(start, evidence)) < unfitted - cost:
            counted = self._fitted_from_both(start, evidence)
            if float(self._loss(counted, evidence)) < alone - cost:
                self.parameters = counted
                return
        self._log_members = None

    def _cost_of_members(self, evidence: ClassEvidence) -> float:
        """By how much members must make the labels more likely, in nats: half of log(n) for each class (MDL)."""
        return (self.num_classes - 1) / 2 * math.log(len(evidence.density))

    @torch.no_grad()
    def _expected_members(self, evidence: ClassEvidence) -> Tensor:
        """Number of samples of each class, (C,), to be expected by what is known so far, and `_FEWEST`."""
        prior, outside = self._prior(self.parameters.all_classes, evidence)
        classes, label = explain(prior, outside, self.parameters.seen(evidence), self.num_classes)
        members = label.new_full((self.num_classes,), _FEWEST)
        return members.index_add_(
            0, evidence.classes.flatten(), (classes / label[:, None]).flatten().to(members)
        )

    def _members(self, evidence: ClassEvidence) -> Tensor:
        """Number of samples given each class, (C,) float64."""
        given = torch.bincount(evidence.classes[:, 0], minlength=self.num_classes)
        return given.to(self.parameters.each_class)

    def _posterior(
        self, parameters: NoiseParameters, evidence: ClassEvidence, pairs: Tensor | None = None
    ) -> Posterior:
        prior, outside = self._prior(parameters.all_classes, evidence)
        seen = parameters.seen(evidence) if pairs is None else evidence.of_pairs(pairs)
        classes, label = explain(prior, outside, seen, self.num_classes)
        even = prior  # a rare class wins where evidence is for it; where there is none, members do not count
        if self._log_members is not None:
            each = evidence.of_classes(self._log_members.exp().to(prior))
            even = torch.where(evidence.known[:, None], prior / each, prior)
        named = prior.shape[1] - count_drawn(self.num_classes)
        return Posterior(classes / label[:, None], even[:, 0] >= even[:, :named].amax(dim=1))

    def _prior(self, common: Tensor, evidence: ClassEvidence) -> tuple[Tensor, Tensor]:
        """Probability of each candidate (n, M), were all of some class, and of no class (n,)."""
        slope = softplus(common[0].to(evidence.density.device))
        scores = slope * evidence.density + evidence.log_stands_for  # (n, M); -inf: no such column
        if self._log_members is not None:
            scores = scores + evidence.of_classes(self._log_members.to(scores))
        # Nobody knows what a class without other members looks like: it is as probable as any.
        blank = scores[evidence.unknown, 1:].logsumexp(dim=1) - math.log(self.num_classes - 1)
        scores[evidence.unknown, 0] = blank
        outside = (2 * (FAR - evidence.affinity)).sigmoid().clamp(max=_MOST_OUTSIDE) * evidence.known
        return scores.softmax(dim=1), outside
