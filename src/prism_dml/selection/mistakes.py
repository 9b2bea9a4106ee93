"""How labels go wrong: how often a sample of one class is given the label of another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

LEAST_RATE = 1e-3
"""So far a rate is kept from 0 and 1, and a share of a pair of classes from 0, that none makes anything impossible."""

_IMPOSSIBLE = 1e-30  # so probable at least is a label that was given


class Mistakes(Protocol):
    """T_kl, how often class k is given label l, for all of C classes; rows sum to 1, but for what `LEAST_RATE` adds."""

    def seen(self, classes: Tensor, num_classes: int) -> Tensor:
        """T_kl for some of `num_classes` classes (n, M) of each sample, and its label, which is the first."""
        ...

    def label(self, chances: Tensor, given: Tensor) -> Tensor:
        """Probability (n, 1) of the given label (n, 1), where each class has the probability (n, C)."""
        ...

    def among(self, present: Tensor, count: int) -> Mistakes:
        """The same of `count` classes, of which these are the `present` ones (C,)."""
        ...


@dataclass(frozen=True)
class AnyAlike:
    """A wrong label is any other alike.

    Attributes:
        rate: share of wrong labels.
    """

    rate: float

    def seen(self, classes: Tensor, num_classes: int) -> Tensor:
        """1 - r for the given class, r / (C - 1) for any other."""
        rate, elsewhere = self._rates(num_classes)
        seen = torch.full(classes.shape, elsewhere, device=classes.device)
        seen[:, 0] = 1 - rate
        return seen

    def label(self, chances: Tensor, given: Tensor) -> Tensor:
        """See `Mistakes`; O(n)."""
        rate, elsewhere = self._rates(chances.shape[1])
        return elsewhere + (1 - rate - elsewhere) * chances.gather(1, given)

    def among(self, present: Tensor, count: int) -> AnyAlike:
        """Itself: absent classes are as any."""
        return self

    def _rates(self, num_classes: int) -> tuple[float, float]:
        rate = min(max(self.rate, LEAST_RATE), 1 - LEAST_RATE)
        return rate, rate / max(num_classes - 1, 1)


@dataclass(frozen=True)
class ByPartner:
    """Of each class a share is given the label of one other, its partner; of what is left, a wrong label is any alike.

    Attributes:
        rate: share of wrong labels among what is left.
        partners: (C,) of each class; -1: none.
        shares: (C,) of each class, in [0, 1); 0 where it has none.
    """

    rate: float
    partners: Tensor
    shares: Tensor

    def seen(self, classes: Tensor, num_classes: int) -> Tensor:
        """See `Mistakes`."""
        shares = self.shares[classes]
        left = (1 - shares) * AnyAlike(self.rate).seen(classes, num_classes)
        return left + shares * (self.partners[classes] == classes[:, :1])

    def label(self, chances: Tensor, given: Tensor) -> Tensor:
        """See `Mistakes`; O(n C)."""
        known = chances[:, : len(self.shares)]  # of classes after that nothing is known: any alike
        exchanged, there = known * self.shares, self.partners >= 0
        label = torch.zeros_like(known).index_add_(1, self.partners[there], exchanged[:, there])
        rate, elsewhere = AnyAlike(self.rate)._rates(chances.shape[1])
        left = chances.sum(dim=1, keepdim=True) - exchanged.sum(dim=1, keepdim=True)
        own = (known - exchanged).gather(1, given)
        label = label.gather(1, given) + elsewhere * left + (1 - rate - elsewhere) * own
        return label.clamp(min=_IMPOSSIBLE)

    def among(self, present: Tensor, count: int) -> ByPartner:
        """See `Mistakes`; absent classes have no partner."""
        partners = self.partners.new_full((count,), -1)
        partners[present] = torch.where(self.partners < 0, -1, present[self.partners])
        return ByPartner(
            self.rate, partners, self.shares.new_zeros(count).index_copy_(0, present, self.shares)
        )


@dataclass(frozen=True)
class ByPair:
    """Each pair of classes has a share of its own.

    Attributes:
        shares: T, (C, C).
    """

    shares: Tensor

    def seen(self, classes: Tensor, num_classes: int) -> Tensor:
        """See `Mistakes`."""
        return self.shares[classes, classes[:, :1]].clamp(min=LEAST_RATE)

    def label(self, chances: Tensor, given: Tensor) -> Tensor:
        """See `Mistakes`; O(n C)."""
        known = chances[:, : len(self.shares)]  # classes after that are given no label
        shares = self.shares.clamp(min=LEAST_RATE).T[given.squeeze(1)]
        return (known * shares).sum(dim=1, keepdim=True).clamp(min=_IMPOSSIBLE)

    def among(self, present: Tensor, count: int) -> ByPair:
        """See `Mistakes`; absent classes are given the right label."""
        shares = torch.eye(count, device=present.device)
        shares[present[:, None], present] = self.shares
        return ByPair(shares)
