"""Densities under the classes, changed to where they make the given labels most likely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from prism_dml.selection.candidates import CHUNK, ClassEvidence
from prism_dml.selection.discriminant import ClassBalls, Whitened
from prism_dml.selection.draw import some

_EACH = 50  # samples for each class, from which on labels tell more of its direction than its mean does
_NUMBERS, _MOST = 1 << 24, 1 << 16  # samples times classes, and samples, that are learned from at most
_STEPS = 5  # of the optimiser: more make no difference
_LEAST = 1e-9  # likelihood of a label
_FEWEST = 0.5  # members that a class is taken to have: there may be some


def can_refine(num_samples: int, num_classes: int) -> bool:
    """Whether there are enough samples for each class, and not too many classes to look at all of them at once."""
    return min(num_samples, _most(num_classes)) >= _EACH * num_classes


def refine(
    evidence: ClassEvidence,
    whitened: Whitened,
    labels: Tensor,
    trusts: Sequence[Tensor],
    folds: Tensor,
    slope: float,
    shares: Tensor,
) -> ClassEvidence:
    """The evidence, were classes told apart by the directions that make the given labels most likely.

    By balls about the means of classes, class k has the logit s x.m_k, up to a constant of it, for a sample x. That is
    the best there is if classes are balls; if they are not, s x.(m_k + v_k) is better, for v_k found by the likelihood
    of the given labels, of which some are wrong as `shares` says. v_k has a normal prior about 0, as wide as the
    means of the classes are about their centre. For each fold it is found on the samples of the others, so that no
    label has a say on itself.

    Args:
        evidence: on N samples, in order.
        whitened: N samples in D directions, see `whiten`.
        labels: (N,) given labels.
        trusts: for each fold (N,) the weight of each sample as a member of its class, 0 of the fold's own.
        folds: (N,) the fold of each sample.
        slope: s, of densities.
        shares: (C, C) how often class k is given label l.

    Returns:
        The evidence with other densities. O(N C D) time; O(N C) memory, of 65,536 samples at most, and these samples.

    Source: multinomial logistic regression beside linear discriminant analysis, see Hastie, Tibshirani and Friedman,
    The Elements of Statistical Learning, 2009, sec. 4.4.5; of which some labels are wrong: Patrini et al., CVPR 2017.
    """
    density = evidence.density.clone()
    for fold, trust in enumerate(trusts):
        asked, own = (there.nonzero().squeeze(1) for there in (folds != fold, folds == fold))
        balls = ClassBalls(whitened, labels, trust)
        asked = asked[some(len(asked), _most(len(balls.mass)), asked.device)]
        moved = _moved(balls, asked, slope, shares)
        for part in torch.split(own, CHUNK):
            density[part] += (whitened.rows[part] @ moved).gather(1, evidence.classes[part])
    return replace(evidence, density=density)


def _most(num_classes: int) -> int:
    """Samples that are learned from, at most."""
    return min(_MOST, _NUMBERS // num_classes)


def _moved(balls: ClassBalls, samples: Tensor, slope: float, shares: Tensor) -> Tensor:
    """By how much the class means are moved, (D, C), to make the labels of some samples most likely."""
    rows, labels = balls.whitened.rows[samples], balls.labels[samples]
    # How frequent a class is has its say here, for it shall not move the means; in the evidence it has none.
    before = slope * balls.density(samples) + balls.mass.clamp(min=_FEWEST).log()  # (n, C)
    seen = shares.T.to(rows)[labels]  # (n, C)
    # offsets: half the squared lengths of the means, but for what they are off by chance
    variance = (slope**2 * 2 * balls.offsets.mean() / rows.shape[1]).clamp(min=_LEAST)
    moved = torch.zeros_like(balls.means.T, memory_format=torch.contiguous_format).requires_grad_(True)
    optimizer = torch.optim.LBFGS([moved], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        label = ((before + rows @ moved).softmax(dim=1) * seen).sum(dim=1)
        prior = moved.square().sum() / (2 * variance * len(rows))
        loss = prior - label.clamp(min=_LEAST).log().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return moved.detach() / slope
