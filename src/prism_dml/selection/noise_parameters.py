"""What a label model fits: how sharp the evidence is and how often labels are wrong, and what is expected of both."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prism_dml.selection.candidates import ClassEvidence

# Of the parameters b (before softplus) and r, below: one over the variance of a Gaussian prior. b is held to about the
# slope that it would have if densities were right: of few samples that are all about equally clear, "all are hard", a
# slope near 0, explains wrong labels as well as r does. Of thousands whose labels are mostly wrong the two differ by
# less than the model is off, so b is held the firmer, the more there are; for a few hundred that is too firm.
_STRENGTH = 1.0, 0.2
_FIRMER_FROM, _FIRMEST = 250, 10.0  # samples from which on b's is more, in proportion, up to so many times
# Of the prior of what a class adds to r, for each class there is: where these are few, labels that are wrong in some
# only are else taken for those of hard classes; among many a wrong label stands out by itself. And more by the cube of
# how much smaller a class is than the mean: of one with hardly a member it could be said that all near it are its own.
_CLASS_STRENGTH = 0.2
_FLIP_STRENGTH = 5.0  # of the prior of each flip's logarithm: as if seen some five times as often
# Of a class at most half is given its partner's label, since of more that would be the class's own. The middle of the
# logits of the share of that, before anything is seen: about 0.2 of the class.
_MOST_SHARED, _SHARE = 0.5, -0.4
_SHARE_STRENGTH, _MIDDLE_STRENGTH = 1.0, 0.2  # of their prior about their middle, and of that about _SHARE


@dataclass(frozen=True)
class NoiseParameters:
    """The parameters of a `LabelModel` of C classes, float64.

    Attributes:
        middle: (2,) of the prior of `all_classes`.
        all_classes: (2,) b before softplus, and the logit of r.
        each_class: (C,) what is added to that logit.
        flips: (C, C) logarithms of f_kl, up to a constant for each k; None: all alike.
        partners: (C,) int64, the class whose label each class is given by mistake, -1: none; None: no class has one.
        shares: (C + 1,) logits of how often each class is given the label of its partner, of `_MOST_SHARED`, and their
            middle.
    """

    middle: Tensor
    all_classes: Tensor
    each_class: Tensor
    flips: Tensor | None = None
    partners: Tensor | None = None
    shares: Tensor | None = None

    def with_flips(self) -> NoiseParameters:
        """The same with a share for each pair of classes, which are alike if they are new."""
        if self.flips is not None:
            return self
        count = len(self.each_class)
        return replace(self, flips=self.each_class.new_zeros(count, count))

    def with_pairs(self, counts: Tensor) -> NoiseParameters:
        """The same with rates and a share for each pair of classes as counted: samples of class k with label l, > 0."""
        shares = (counts / counts.sum(dim=1, keepdim=True)).cpu()
        rates, labelled = (1 - shares.diagonal()).logit(), counts.sum(dim=0).cpu()
        middle = (rates * labelled).sum() / labelled.sum()  # as `centred`
        itself = torch.eye(len(shares), dtype=torch.bool)
        flips = shares.log().masked_fill(itself, 0.0)
        flips = flips - flips.sum(dim=1, keepdim=True) / max(len(shares) - 1, 1)  # their softmax is the same
        all_classes = torch.stack([self.all_classes[0], middle])
        return replace(
            self,
            all_classes=all_classes,
            each_class=rates - middle,
            flips=flips.masked_fill(itself, 0.0),
        )

    def with_partners(self, partners: Tensor | None) -> NoiseParameters:
        """The same with these partners (C,), or with none."""
        shares = None if partners is None else self.each_class.new_full((len(self.each_class) + 1,), _SHARE)
        return replace(self, partners=partners, shares=shares)

    def free(self) -> list[Tensor]:
        """What is fitted, as leaves of a graph of their own."""
        values = (self.all_classes, self.each_class, self.flips, self.shares)
        return [value.detach().clone().requires_grad_(True) for value in values if value is not None]

    def at(self, values: list[Tensor]) -> NoiseParameters:
        """The same with other values of what `free` lists."""
        all_classes, each_class, *further = values
        flips = further.pop(0) if self.flips is not None else None
        shares = further.pop(0) if self.shares is not None else None
        return replace(self, all_classes=all_classes, each_class=each_class, flips=flips, shares=shares)

    def common(self) -> Tensor:
        """What all classes share, (2,), or (3,) where they have partners: `all_classes`, and what all shares add, 0."""
        added = 0 if self.shares is None else 1
        return torch.cat([self.all_classes, self.all_classes.new_zeros(added)])

    def with_common(self, common: Tensor) -> NoiseParameters:
        """The same with other values of what `common` gives."""
        shares = None if self.shares is None else self.shares + common[2]
        return replace(self, all_classes=common[:2], shares=shares)

    def wrong(self) -> Tensor:
        """r_k, the share of wrong labels of each class, (C,), beside what is given to its partner."""
        return (self.all_classes[1] + self.each_class).sigmoid()

    def given_to_partner(self) -> Tensor:
        """The share of each class that is given its partner's label, (C,)."""
        if self.partners is None or self.shares is None:
            return torch.zeros_like(self.each_class)
        return _MOST_SHARED * self.shares[:-1].sigmoid() * (self.partners >= 0)

    def seen(self, evidence: ClassEvidence) -> Tensor:
        """How often each candidate class has the given label, (n, M)."""
        count, device = len(self.each_class), evidence.density.device
        wrong = self.wrong().to(device)
        if self.flips is not None:
            itself = torch.eye(count, dtype=torch.bool, device=device)
            flip = self.flips.to(device).masked_fill(itself, -torch.inf).softmax(dim=1)
            return evidence.of_pairs(wrong[:, None] * flip + torch.diag(1 - wrong))
        if self.partners is None:
            seen = evidence.of_classes(wrong / (count - 1))
            return torch.cat([1 - wrong[evidence.classes[:, :1]], seen[:, 1:]], dim=1)
        share, given = self.given_to_partner().to(device), evidence.classes[:, :1]
        right = ((1 - share) * (1 - wrong))[given]
        theirs = self.partners.to(device)[evidence.classes] == given
        seen = evidence.of_classes((1 - share) * wrong / (count - 1)) + evidence.of_classes(share) * theirs
        return torch.cat([right, seen[:, 1:]], dim=1)

    def penalty(self, members: Tensor, count: int) -> Tensor:
        """-2 log of the prior, up to a constant, of classes of so many members (C,), of `count` samples in all."""
        strength = torch.tensor(_STRENGTH, dtype=self.all_classes.dtype)
        strength[0] *= min(max(count / _FIRMER_FROM, 1.0), _FIRMEST)
        penalty = (strength * (self.all_classes - self.middle) ** 2).sum()
        smaller = (members.mean() / members.clamp(min=1)).clamp(min=1)
        penalty = penalty + _CLASS_STRENGTH * len(members) * (smaller**3 * self.each_class**2).sum()
        if self.flips is not None:
            penalty = penalty + _FLIP_STRENGTH * (self.flips**2).sum()
        if self.shares is not None:
            own, middle = self.shares[:-1], self.shares[-1]
            penalty = penalty + _SHARE_STRENGTH * ((own - middle) ** 2).sum()
            penalty = penalty + _MIDDLE_STRENGTH * (middle - _SHARE) ** 2
        return penalty

    def centred(self, members: Tensor) -> NoiseParameters:
        """What classes add to r is nothing on average over the samples, (C,) of each class: r is that of all labels.

        Otherwise r would be that of the many classes that are small, which no prior holds to that of the others.
        """
        each_class = self.each_class
        each_class = each_class - (each_class * members).sum() / members.sum()
        return replace(self, each_class=each_class)
