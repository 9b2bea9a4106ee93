"""The adapter of SoftTriple against the paper's formulas in loops."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from prism_dml.losses import SoftTripleLoss


def batch(n=6, dim=5, classes=4):
    generator = torch.Generator().manual_seed(0)
    embeddings = normalize(torch.randn(n, dim, generator=generator), dim=1)
    return embeddings, torch.randint(classes, (n,), generator=generator)


def naive_similarity(embedding, centres, gamma):
    """Eq. 6: the centres of a class weighted by a softmax of their similarities."""
    similarities = [float(embedding @ (c / c.norm())) for c in centres]
    weights = [math.exp(s / gamma) for s in similarities]
    return sum(w * s for w, s in zip(weights, similarities, strict=True)) / sum(weights)


def test_matches_loops():
    embeddings, labels = batch()
    loss = SoftTripleLoss(4, 5, centers_per_class=3)
    centres = loss.loss.fc.detach().T.reshape(4, 3, 5)
    expected = [[naive_similarity(e, centres[k], 0.1) for k in range(4)] for e in embeddings]
    torch.testing.assert_close(loss.class_similarities(embeddings), torch.tensor(expected))
    losses = []
    for row, label in zip(expected, labels.tolist(), strict=True):
        scaled = [math.exp(20 * (s - 0.01 * (k == label))) for k, s in enumerate(row)]
        losses.append(-math.log(scaled[label] / sum(scaled)))
    torch.testing.assert_close(loss(embeddings, labels), torch.tensor(sum(losses) / len(losses)))


def test_gradcheck():
    embeddings, labels = batch()
    loss = SoftTripleLoss(4, 5).double()
    leaf = embeddings.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda e: loss(e, labels), leaf)
    loss(leaf, labels).backward()
    assert loss.loss.fc.grad.abs().sum() > 0


def test_centres_per_class():
    assert SoftTripleLoss(499, 2).loss.fc.shape == (2, 4990)
    assert SoftTripleLoss(500, 2).loss.fc.shape == (2, 1000)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_leave_the_centres_in_float32(dtype):
    embeddings, labels = batch()
    loss = SoftTripleLoss(4, 5)
    expected = loss(embeddings.to(dtype).float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss(embeddings.to(dtype), labels)
    assert loss.loss.fc.dtype == torch.float32 and torch.equal(got, expected)


def test_empty_batch():
    loss = SoftTripleLoss(4, 5)
    embeddings = torch.zeros(0, 5, requires_grad=True)
    result = loss(embeddings, torch.zeros(0, dtype=torch.int64))
    result.backward()
    assert result == 0 and embeddings.grad.shape == (0, 5) and not loss.loss.fc.grad.any()


def test_seed_alone_decides_the_centres():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, again, other = SoftTripleLoss(4, 5), SoftTripleLoss(4, 5), SoftTripleLoss(4, 5, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.loss.fc, again.loss.fc) and not torch.equal(first.loss.fc, other.loss.fc)


def test_mistakes():
    embeddings, labels = batch()
    loss = SoftTripleLoss(4, 5)
    for bad in (labels[:3], labels.float(), labels - 4, labels + 4):
        with pytest.raises(ValueError, match="labels must be"):
            loss(embeddings, bad)
    with pytest.raises(ValueError, match="embeddings must have shape"):
        loss.class_similarities(embeddings[:, :3])
    for bad in ({"num_classes": 0}, {"embedding_dim": 0}, {"centers_per_class": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            SoftTripleLoss(**({"num_classes": 4, "embedding_dim": 5} | bad))
    for bad in ({"la": 0}, {"gamma": 0}, {"margin": -1}):
        with pytest.raises(ValueError, match="la and gamma"):
            SoftTripleLoss(4, 5, **bad)
