import math

import pytest
import torch
from torch.nn.functional import normalize

from prism_dml.losses import PrototypeLoss

C, D, M = 5, 6, 14


def unit(generator, *shape):
    return normalize(torch.randn(*shape, generator=generator), dim=-1)


def memory(seed=0):
    """Class 4 has no entry, two slots are empty, some entries are of the samples that are asked for."""
    generator = torch.Generator().manual_seed(seed)
    embeddings, labels = unit(generator, M, D), torch.randint(C - 1, (M,), generator=generator)
    labels[:2] = -1
    embeddings[:2] = 9.0  # what an empty slot holds does not matter
    centres = torch.zeros(C, D)
    for k in range(C):
        if (labels == k).any():
            centres[k] = embeddings[labels == k].mean(dim=0)
    return embeddings, labels, torch.arange(M) % 7, centres


def naive(x, own, embeddings, labels, index, centres, scale, margin, support):
    usable = [j for j in range(M) if labels[j] >= 0 and not (own >= 0 and index[j] == own)]
    if not usable:
        return None
    nearest = sorted(usable, key=lambda j: -float(x @ embeddings[j]))[:support]
    weights = [math.exp(float(x @ embeddings[j])) for j in nearest]
    positive = normalize(sum(w * embeddings[j] for w, j in zip(weights, nearest, strict=True)), dim=0)
    target = math.exp(scale * (float(x @ positive) - margin))
    resembled = {int(labels[j]) for j in nearest}
    others = [k for k in range(C) if k not in resembled and centres[k].any()]
    total = sum(math.exp(scale * float(x @ normalize(centres[k], dim=0))) for k in others)
    return -math.log(target / (target + total))


@pytest.mark.parametrize("support", [1, 4, 50])
@pytest.mark.parametrize("scale, margin", [(50.0, 0.1), (10.0, 0.3), (3.0, 0.0)])
def test_against_loops(support, scale, margin):
    bank = memory()
    generator = torch.Generator().manual_seed(1)
    x, index = unit(generator, 8, D), torch.tensor([-1, 0, 1, 2, 3, 4, 5, 6])
    expected = [naive(v, int(i), *bank, scale, margin, support) for v, i in zip(x, index, strict=True)]
    embeddings, labels, bank_index, centres = bank
    loss = PrototypeLoss(scale, margin, support)(x, index, embeddings, labels, bank_index, centres)
    assert loss.item() == pytest.approx(sum(expected) / len(expected), rel=1e-4, abs=1e-6)


def test_gradient_pulls_towards_what_a_sample_resembles():
    embeddings, labels = torch.eye(D)[:4], torch.arange(4)
    x = normalize(torch.tensor([[1.0, 0.9, 0.0, 0.0, 0.3, 0.0]]), dim=1).requires_grad_()
    loss = PrototypeLoss(support=1)(
        x, torch.tensor([-1]), embeddings, labels, torch.full((4,), -1), embeddings
    )
    loss.backward()
    assert x.grad[0, 0] < 0 < x.grad[0, 1]


def test_nothing_to_resemble_is_a_loss_of_zero():
    embeddings, labels, index, centres = memory()
    x = unit(torch.Generator().manual_seed(1), 3, D).requires_grad_()
    loss = PrototypeLoss()(
        x, torch.arange(3), embeddings, torch.full_like(labels, -1), index, torch.zeros(C, D)
    )
    own = PrototypeLoss()(x, torch.arange(3), torch.ones(1, D), labels[:1] + 1, index[:1], centres)
    empty = PrototypeLoss()(x[:0], torch.arange(0), embeddings, labels, index, centres)
    (loss + empty).backward()
    assert loss == empty == 0 and own > 0 and not x.grad.any()


def test_half_precision_and_autocast():
    embeddings, labels, index, centres = memory()
    x = unit(torch.Generator().manual_seed(1), 3, D).bfloat16()
    expected = PrototypeLoss()(x.float(), torch.arange(3), embeddings, labels, index, centres)
    with torch.autocast("cpu", torch.bfloat16):
        assert PrototypeLoss()(x, torch.arange(3), embeddings, labels, index, centres) == expected


@pytest.mark.parametrize("bad", [{"scale": 0.0}, {"margin": -0.1}, {"support": 0}])
def test_mistakes(bad):
    with pytest.raises(ValueError, match="scale must be above 0"):
        PrototypeLoss(**bad)
