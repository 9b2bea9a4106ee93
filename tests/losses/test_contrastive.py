"""Contrastive losses against loops over pairs, finite differences and pytorch-metric-learning."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import ContrastiveLoss as PmlContrastiveLoss
from pytorch_metric_learning.reducers import SumReducer
from torch import Tensor
from torch.nn.functional import normalize

from prism_dml.losses import ContrastiveLoss, MemoryContrastiveLoss, contrastive


def unit(n: int, dim: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    rows = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return normalize(rows, dim=1).to(dtype)


def classes(n: int, count: int, seed: int, low: int = 0) -> Tensor:
    return torch.randint(low, count, (n,), generator=torch.Generator().manual_seed(seed + 1000))


def loop_loss(anchors, labels, reference, reference_labels, margin, skip=lambda a, b: False) -> Tensor:
    total = anchors.sum() * 0
    for a in range(len(anchors)):
        for b in range(len(reference)):
            if skip(a, b) or reference_labels[b] < 0:
                continue
            similarity = anchors[a] @ reference[b]
            if labels[a] == reference_labels[b]:
                total = total + 1 - similarity
            elif similarity > margin:
                total = total + similarity
    return total / max(len(anchors), 1)


def with_gradient(function, embeddings: Tensor) -> tuple[Tensor, Tensor]:
    leaf = embeddings.clone().requires_grad_()
    loss = function(leaf)
    loss.backward()
    return loss.detach(), leaf.grad


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(0, 7),
    bank=st.integers(0, 11),
    count=st.integers(1, 4),
    margin=st.sampled_from([-0.3, 0.0, 0.5]),
    chunk=st.sampled_from([1, 4, 64]),
    weight=st.sampled_from([0.0, 1.0, 2.5]),
    seed=st.integers(0, 9),
)
def test_matches_loops(batch, bank, count, margin, chunk, weight, seed):
    embeddings, labels = unit(batch, 3, seed), classes(batch, count, seed)
    rows, row_labels = unit(bank, 3, seed + 1), classes(bank, count, seed + 1, low=-1)
    rows[: 2 * min(batch, 1)] = embeddings[:1]  # exact duplicates of a batch sample
    index, bank_index = classes(batch, 9, seed, low=-1), classes(bank, 9, seed + 3, low=-1)

    def naive(e: Tensor) -> Tensor:
        own = loop_loss(e, labels, e, labels, margin, skip=lambda a, b: a == b)
        return own + weight * loop_loss(
            e, labels, rows, row_labels, margin, skip=lambda a, b: index[a] == bank_index[b] >= 0
        )

    loss = MemoryContrastiveLoss(margin, weight)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contrastive, "_CHUNK", chunk)
        got = with_gradient(lambda e: loss(e, labels, rows, row_labels, index, bank_index), embeddings)
    for ours, expected in zip(got, with_gradient(naive, embeddings), strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("margin", [0.5, 0.0])
def test_batch_part_matches_loops(margin):
    embeddings, labels = unit(12, 4, 3), classes(12, 3, 3)
    embeddings[5] = embeddings[2]  # duplicates with the same and with another label
    embeddings[6] = embeddings[2]
    labels[[2, 5, 6]] = torch.tensor([0, 0, 1])
    got = with_gradient(lambda e: ContrastiveLoss(margin)(e, labels), embeddings)
    expected = with_gradient(
        lambda e: loop_loss(e, labels, e, labels, margin, skip=lambda a, b: a == b), embeddings
    )
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradcheck():
    embeddings, labels = unit(6, 4, 0), classes(6, 3, 0)
    rows, row_labels = unit(9, 4, 1), classes(9, 3, 1, low=-1)
    similarities = torch.cat([embeddings @ embeddings.T, embeddings @ rows.T], dim=1)
    assert (similarities - 0.5).abs().min() > 1e-4  # the loss jumps at the margin
    leaf = embeddings.requires_grad_()
    assert torch.autograd.gradcheck(lambda e: ContrastiveLoss()(e, labels), leaf)
    assert torch.autograd.gradcheck(lambda e: MemoryContrastiveLoss()(e, labels, rows, row_labels), leaf)


def pml_loss(embeddings: Tensor, labels: Tensor, **reference: Tensor) -> Tensor:
    loss = PmlContrastiveLoss(pos_margin=1, neg_margin=0.5, distance=CosineSimilarity(), reducer=SumReducer())
    return loss(embeddings, labels, **reference) / len(embeddings)


def test_agrees_with_pytorch_metric_learning():
    """Theirs is S - margin where ours is S for pairs past the margin: equal gradients, values apart."""
    raw, labels = torch.randn(20, 5, generator=torch.Generator().manual_seed(0)).double(), classes(20, 4, 0)
    rows, row_labels = unit(30, 5, 1), classes(30, 4, 1)
    unit_rows = normalize(raw, dim=1)

    def pushed(similarity: Tensor, other: Tensor) -> Tensor:
        return ((similarity > 0.5) & other).sum() / len(raw)

    ours = with_gradient(lambda e: ContrastiveLoss()(normalize(e, dim=1), labels), raw)
    theirs = with_gradient(lambda e: pml_loss(e, labels), raw)
    constant = 0.5 * pushed(unit_rows @ unit_rows.T, labels[:, None] != labels)
    assert constant > 0
    torch.testing.assert_close(ours[0], theirs[0] + constant)
    torch.testing.assert_close(ours[1], theirs[1])

    zero_batch = with_gradient(lambda e: ContrastiveLoss()(normalize(e, dim=1), labels), raw)
    memory = with_gradient(
        lambda e: MemoryContrastiveLoss()(normalize(e, dim=1), labels, rows, row_labels), raw
    )
    theirs = with_gradient(lambda e: pml_loss(e, labels, ref_emb=rows, ref_labels=row_labels), raw)
    constant = 0.5 * pushed(unit_rows @ rows.T, labels[:, None] != row_labels)
    assert constant > 0
    torch.testing.assert_close(memory[0] - zero_batch[0], theirs[0] + constant)
    torch.testing.assert_close(memory[1] - zero_batch[1], theirs[1])


def test_bank_may_be_overwritten_before_backward_and_gets_no_gradient():
    embeddings, labels = unit(5, 4, 0), classes(5, 2, 0)
    rows, row_labels = unit(8, 4, 1), classes(8, 2, 1)
    loss = MemoryContrastiveLoss()
    _, expected = with_gradient(lambda e: loss(e, labels, rows, row_labels), embeddings)
    leaf, bank = embeddings.clone().requires_grad_(), rows.clone().requires_grad_()
    result = loss(leaf, labels, bank, row_labels)
    with torch.no_grad():
        bank.zero_()
        row_labels.fill_(-1)
    result.backward()
    torch.testing.assert_close(leaf.grad, expected)
    assert bank.grad is None


def test_empty_slots_may_hold_nan():
    embeddings, labels = unit(4, 3, 0), classes(4, 2, 0)
    rows, row_labels = unit(6, 3, 1), torch.tensor([0, -1, 1, -1, -1, 0])
    filled = row_labels >= 0
    rows[~filled] = torch.nan
    for margin in (0.5, -0.5):
        loss = MemoryContrastiveLoss(margin)
        got = with_gradient(lambda e: loss(e, labels, rows, row_labels), embeddings)  # noqa: B023
        expected = with_gradient(
            lambda e: loss(e, labels, rows[filled], row_labels[filled]),  # noqa: B023
            embeddings,
        )
        torch.testing.assert_close(got, expected)


def test_nothing_to_learn_from_is_zero_with_a_gradient():
    nothing, no_labels = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    loss, gradient = with_gradient(lambda e: MemoryContrastiveLoss()(e, no_labels, e, no_labels), nothing)
    assert loss == 0 and gradient.shape == (0, 4)
    alone, its_label = unit(1, 4, 0, torch.float32), torch.tensor([3])
    loss, gradient = with_gradient(lambda e: MemoryContrastiveLoss()(e, its_label, nothing, no_labels), alone)
    assert loss == 0 and not gradient.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    embeddings, labels = unit(32, 16, 0).to(dtype), classes(32, 4, 0)
    rows, row_labels = unit(5000, 16, 1).to(dtype), classes(5000, 4, 1)
    loss = MemoryContrastiveLoss()
    got, gradient = with_gradient(lambda e: loss(e, labels, rows, row_labels), embeddings)
    exact, exact_gradient = with_gradient(
        lambda e: loss(e, labels, rows.double(), row_labels), embeddings.double()
    )
    assert got.dtype == torch.float32 and gradient.dtype == dtype
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=2e-2, atol=2e-2)


def test_autocast_changes_nothing():
    embeddings, labels = unit(16, 8, 0, torch.float32), classes(16, 3, 0)
    rows, row_labels = unit(100, 8, 1, torch.float32), classes(100, 3, 1)
    loss = MemoryContrastiveLoss()
    expected = with_gradient(lambda e: loss(e, labels, rows, row_labels), embeddings)
    leaf = embeddings.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = loss(leaf, labels, rows, row_labels)
    result.backward()
    assert torch.equal(result.detach(), expected[0]) and torch.equal(leaf.grad, expected[1])


def test_never_holds_a_batch_by_bank_matrix():
    """Every tensor made on the way, backward included, stays far below B x M; inside the operator, too."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and result.data_ptr() != rows.data_ptr():
                largest = max(largest, result.untyped_storage().nbytes() if result._base is None else 0)
            return result

    embeddings, labels = unit(64, 4, 0, torch.float32).requires_grad_(), classes(64, 5, 0)
    rows, row_labels = unit(20_000, 4, 1, torch.float32), classes(20_000, 5, 1)
    with Sizes():
        MemoryContrastiveLoss()(embeddings, labels, rows, row_labels).backward()
    assert 0 < largest <= 64 * 2048 * 4
    with Sizes():
        contrastive._sum_pairs(embeddings.detach(), labels, None, rows, row_labels, None, 0.5, 1)
    assert 64 * 2048 <= largest <= 64 * 2048 * 4 < 64 * 20_000 * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embeddings": torch.zeros(3)}, "embeddings must be floats"),
        ({"embeddings": torch.zeros(3, 2, dtype=torch.int64)}, "embeddings must be floats"),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, "labels of embeddings"),
        ({"labels": torch.zeros(3)}, "labels of embeddings"),
        ({"bank_embeddings": torch.zeros(5, 3)}, "2 dimensions, the bank's 3"),
        ({"bank_labels": torch.zeros(4, dtype=torch.int64)}, "labels of bank_embeddings"),
        ({"bank_index": torch.zeros(4, dtype=torch.int64)}, "index of bank_embeddings"),
    ],
)
def test_wrong_shapes(arguments, message):
    usual = {
        "embeddings": torch.zeros(3, 2),
        "labels": torch.zeros(3, dtype=torch.int64),
        "bank_embeddings": torch.zeros(5, 2),
        "bank_labels": torch.zeros(5, dtype=torch.int64),
    }
    with pytest.raises(ValueError, match=message):
        MemoryContrastiveLoss()(**(usual | arguments))


def test_wrong_settings():
    for margin in (1.0, -1.5, float("nan")):
        with pytest.raises(ValueError, match="margin"):
            ContrastiveLoss(margin)
    with pytest.raises(ValueError, match="bank_weight"):
        MemoryContrastiveLoss(bank_weight=-1)
    assert repr(MemoryContrastiveLoss()) == "MemoryContrastiveLoss(margin=0.5, bank_weight=1.0)"
