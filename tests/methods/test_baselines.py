"""The losses of the comparison, settings included, against the papers' formulas in plain loops."""

import math

import pytest
from torch import Tensor
from torch.nn.functional import normalize

from .stand_in import INDEX, LABELS, B, C, build, draw

SAME = [[j for j in range(B) if j != i and LABELS[j] == LABELS[i]] for i in range(B)]
OTHER = [[j for j in range(B) if LABELS[j] != LABELS[i]] for i in range(B)]


def cross_entropy(logits: list[float], label: int) -> float:
    return math.log(sum(math.exp(value - logits[label]) for value in logits))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def nsoftmax(cosines: Tensor, weights: Tensor) -> float:
    return mean([cross_entropy([c / 0.05 for c in row], y) for row, y in zip(weights, LABELS, strict=True)])


def proxy_nca(cosines: Tensor, weights: Tensor) -> float:
    # The squared distance of unit vectors is 2 - 2 cos.
    return mean(
        [cross_entropy([-3 * (2 - 2 * c) for c in row], y) for row, y in zip(weights, LABELS, strict=True)]
    )


def proxy_anchor(cosines: Tensor, weights: Tensor) -> float:
    pull = [sum(math.exp(-32 * (weights[i][k] - 0.1)) for i in range(B) if LABELS[i] == k) for k in range(C)]
    push = [sum(math.exp(32 * (weights[i][k] + 0.1)) for i in range(B) if LABELS[i] != k) for k in range(C)]
    present = len(set(LABELS.tolist()))
    return sum(map(math.log1p, pull)) / present + sum(map(math.log1p, push)) / C


def sub_centre_arcface(cosines: Tensor, weights: Tensor) -> float:
    margin, losses = math.radians(28.6), []
    for row, y in zip(weights, LABELS.tolist(), strict=True):
        best = [max(row[3 * k : 3 * k + 3]) for k in range(C)]
        angle = math.acos(best[y])
        assert angle <= math.pi - margin
        best[y] = math.cos(angle + margin)
        losses.append(cross_entropy([64 * c for c in best], y))
    return mean(losses)


def ms(cosines: Tensor, weights: Tensor) -> float:
    losses = []
    for i, row in enumerate(cosines):
        hardest, easiest = max(row[j] for j in OTHER[i]), min(row[j] for j in SAME[i])
        pull = sum(math.exp(-2 * (row[j] - 0.5)) for j in SAME[i] if row[j] - 0.1 < hardest)
        push = sum(math.exp(40 * (row[j] - 0.5)) for j in OTHER[i] if row[j] + 0.1 > easiest)
        losses.append(math.log1p(pull) / 2 + math.log1p(push) / 40)
    return mean(losses)


def circle(cosines: Tensor, weights: Tensor) -> float:
    losses = []
    for i, row in enumerate(cosines):
        pull = sum(math.exp(-80 * max(1.4 - row[j], 0) * (row[j] - 0.6)) for j in SAME[i])
        push = sum(math.exp(80 * max(row[j] + 0.4, 0) * (row[j] - 0.4)) for j in OTHER[i])
        losses.append(math.log1p(pull * push))
    return mean([loss for loss in losses if loss > 0])


def supcon(cosines: Tensor, weights: Tensor) -> float:
    losses = []
    for i, row in enumerate(cosines):
        total = sum(math.exp(row[j] / 0.1) for j in SAME[i] + OTHER[i])
        losses.append(mean([math.log(total) - row[j] / 0.1 for j in SAME[i]]))
    return mean(losses)


def fast_ap(cosines: Tensor, weights: Tensor) -> float:
    def histogram(row: list[float], members: list[int]) -> list[float]:
        places = [
            (2 - 2 * row[j]) / 0.4 for j in members
        ]  # squared distances from 0 to 4 in 10 bins, 11 edges
        return [sum(max(0.0, 1 - abs(place - edge)) for place in places) for edge in range(11)]

    losses = []
    for i, row in enumerate(cosines):
        same, other, precision = histogram(row, SAME[i]), histogram(row, OTHER[i]), 0.0
        for edge in range(11):
            found = sum(same[: edge + 1])
            if same[edge] > 0:
                precision += same[edge] * found / (found + sum(other[: edge + 1]))
        losses.append(1 - precision / len(SAME[i]))
    return mean(losses)


NAIVE = {
    "nsoftmax": nsoftmax, "proxy-nca": proxy_nca, "proxy-anchor": proxy_anchor, "ms": ms, "circle": circle,
    "sub-centre-arcface": sub_centre_arcface, "supcon": supcon, "fast-ap": fast_ap,
}  # fmt: skip


@pytest.mark.parametrize("name", NAIVE)
def test_loss_against_loops(name: str) -> None:
    method, images = build(name), draw(5)
    embeddings = method.embedder(images).detach().double()
    weights = [weight.detach().double() for weight in method.proxies()]
    rows = [weight if weight.shape[1] == embeddings.shape[1] else weight.T for weight in weights]
    to_weights = [(embeddings @ normalize(weight, dim=1).T).tolist() for weight in rows]
    expected = NAIVE[name]((embeddings @ embeddings.T).tolist(), to_weights[0] if to_weights else [])
    loss, kept = method(images, LABELS, INDEX)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert kept.all()
