import pytest
import torch
from pytorch_metric_learning.losses import (
    CircleLoss,
    FastAPLoss,
    MultiSimilarityLoss,
    NormalizedSoftmaxLoss,
    ProxyNCALoss,
)
from pytorch_metric_learning.miners import MultiSimilarityMiner
from torch.nn.functional import normalize

from prism_dml.losses import LibraryLoss

CLASSES = {"num_classes": 4, "embedding_size": 5}


def batch(n=12, dim=5):
    generator = torch.Generator().manual_seed(0)
    return normalize(torch.randn(n, dim, generator=generator), dim=1), torch.arange(n) % 4


@pytest.mark.parametrize(
    ("make", "settings"),
    [(FastAPLoss, {"num_bins": 10}), (CircleLoss, {}), (NormalizedSoftmaxLoss, CLASSES), (ProxyNCALoss, CLASSES)],
)  # fmt: skip
def test_is_the_librarys(make, settings):
    embeddings, labels = batch()
    ours = LibraryLoss(make, **settings)
    library = make(**settings)
    library.load_state_dict(ours.loss.state_dict())
    assert ours(embeddings, labels) == library(embeddings, labels)


def test_the_miner_chooses_the_pairs():
    noise, labels = batch()
    embeddings = normalize(torch.eye(5)[labels] + noise, dim=1)  # easy enough that most pairs are left out
    mined = LibraryLoss(MultiSimilarityLoss, MultiSimilarityMiner(epsilon=0.1))(embeddings, labels)
    library = MultiSimilarityLoss()
    assert mined == library(embeddings, labels, MultiSimilarityMiner(epsilon=0.1)(embeddings, labels))
    assert mined != library(embeddings, labels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_leave_the_weights_in_float32(dtype):
    embeddings, labels = batch()
    loss = LibraryLoss(NormalizedSoftmaxLoss, **CLASSES)
    expected = loss(embeddings.to(dtype).float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss(embeddings.to(dtype), labels)
    assert loss.loss.W.dtype == torch.float32 and torch.equal(got, expected)


@pytest.mark.parametrize(("make", "settings"), [(FastAPLoss, {}), (NormalizedSoftmaxLoss, CLASSES)])
def test_empty_batch(make, settings):
    loss = LibraryLoss(make, **settings)
    embeddings = torch.zeros(0, 5, requires_grad=True)
    result = loss(embeddings, torch.zeros(0, dtype=torch.long))
    result.backward()
    assert result == 0 and embeddings.grad.shape == (0, 5)
    assert all((weight.grad == 0).all() for weight in loss.parameters())


def test_a_batch_without_a_pair_has_a_gradient_of_zeros():
    for make in (FastAPLoss, CircleLoss, MultiSimilarityLoss):
        embeddings = batch(3)[0].requires_grad_()
        loss = LibraryLoss(make)(embeddings, torch.arange(3))
        loss.backward()
        assert loss.isfinite() and embeddings.grad.isfinite().all()


def test_seed_alone_decides_the_weights():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, again = (LibraryLoss(NormalizedSoftmaxLoss, **CLASSES) for _ in range(2))
    other = LibraryLoss(NormalizedSoftmaxLoss, seed=1, **CLASSES)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.loss.W, again.loss.W) and not torch.equal(first.loss.W, other.loss.W)
