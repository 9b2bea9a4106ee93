"""The mistakes of the paper's released code (method.md, section 6): each has a test here that we do not make it.

The rest are pinned where the parts live: the memory is saved (test_prism, training/test_loop: resumed is never
stopped), the model is chosen on training classes (training/test_loop), duplicates in retrieval
(retrieval/test_neighbours), self pairs and the divisor of the loss also in losses/test_contrastive.
"""

import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from prism_dml.losses.contrastive import MemoryContrastiveLoss
from prism_dml.methods.base import TrainingSet
from prism_dml.methods.config import MethodConfig
from prism_dml.methods.mcl import PrismMCL
from prism_dml.selection import PRISM, MemoryBank

EYE = torch.eye(8)


def test_evictions_leave_no_stale_centre() -> None:
    bank = MemoryBank(3, 8, 4)
    bank.enqueue(EYE[:4], torch.tensor([0, 0, 1, 1]))
    bank.enqueue(EYE[4:5], torch.tensor([2]))  # evicts an entry of class 0, which this batch does not name
    assert torch.equal(bank.centres[0], EYE[1]) and bank.class_counts.tolist() == [1, 2, 1]


@pytest.mark.parametrize("similarity", ["centre", "exact", "vmf"])
def test_classes_without_entries_are_not_in_the_denominator(similarity) -> None:
    few, many = (PRISM(classes, 8, 0.3, similarity, 10) for classes in (2, 100))
    for prism in (few, many):
        prism.enqueue(EYE[:2], torch.tensor([0, 1]))
    probabilities = [prism(EYE[:2], torch.tensor([0, 0])).clean_probability for prism in (few, many)]
    assert torch.equal(*probabilities)
    if similarity != "vmf":
        assert probabilities[0][0].item() == pytest.approx(math.e / (math.e + 1))


@pytest.mark.parametrize("batch, rate", [(1, 0.5), (4, 0.2), (9, 0.1)])
def test_less_than_one_sample_to_reject_is_none(batch: int, rate: float) -> None:
    prism = PRISM(2, 8, rate, bank_size=10, threshold="top-r")
    prism.enqueue(EYE[:2], torch.tensor([0, 1]))
    assert prism(EYE[:1].expand(batch, 8), torch.ones(batch, dtype=torch.long)).keep.all()


@pytest.mark.parametrize("threshold", ["smooth", "top-r"])
def test_unseen_classes_do_not_distort_the_quantile(threshold) -> None:
    embeddings, labels = EYE[[0, 1, 0, 1]], torch.tensor([0, 1, 1, 0])

    def judge(unseen: int):
        prism = PRISM(5, 8, 0.5, bank_size=10, threshold=threshold)
        prism.enqueue(EYE[:2], torch.tensor([0, 1]))
        more = torch.cat([embeddings, EYE[2:3].expand(unseen, 8)])
        return prism(more, torch.cat([labels, torch.full((unseen,), 4)]))

    alone, together = judge(0), judge(20)
    assert together.keep[4:].all() and torch.equal(alone.keep, together.keep[:4])
    assert alone.threshold == together.threshold and not alone.keep.all()


def test_a_wrapping_ring_overwrites_the_oldest() -> None:
    bank = MemoryBank(8, 8, 5)
    for start in (0, 3):
        bank.enqueue(EYE[start : start + 3], torch.arange(start, start + 3))
    assert sorted(bank.labels.tolist()) == [1, 2, 3, 4, 5]
    bank.enqueue(EYE, torch.arange(8))  # larger than the bank
    assert sorted(bank.labels.tolist()) == [3, 4, 5, 6, 7]


def test_exact_duplicates_are_pairs() -> None:
    """Similarity 1 does not make a pair a sample with itself."""
    same = EYE[:1].expand(3, 8)
    apart = MemoryContrastiveLoss()(same, torch.arange(3), EYE[:0], torch.zeros(0, dtype=torch.long))
    assert apart.item() == pytest.approx(2.0)


class _Given(nn.Module):
    """An embedder that has learned the images as they are."""

    config = {"embedding_dim": 8}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return normalize(images, dim=1)


def test_the_loss_is_divided_by_the_kept_samples() -> None:
    method = PrismMCL(
        _Given(), TrainingSet(torch.zeros(10).long(), 3), MethodConfig(noise_rate=0.5, threshold="top-r")
    )
    method.selector.enqueue(EYE[[0, 1]], torch.tensor([0, 1]))
    images, labels = EYE[[0, 1, 0, 1]], torch.tensor([0, 1, 1, 0])
    images[:2] += 0.4 * EYE[2]
    loss, kept = method(images, labels, torch.arange(4))
    assert kept.tolist() == [True, True, False, False]
    alone = MemoryContrastiveLoss()(
        normalize(images[:2]), labels[:2], method.bank.embeddings, method.bank.labels
    )
    assert loss.item() == pytest.approx(alone.item()) and loss > 0


def test_all_of_the_state_is_saved() -> None:
    names = set(PRISM(3, 8).state_dict())
    assert {"bank.embeddings", "bank.labels", "bank.index", "bank.total", "bank.class_sums"} <= names
    assert {"rule.quantiles", "rule.seen", "estimator.evidence", "batches"} <= names


class _CountedOperations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("similarity", ["centre", "exact", "vmf"])
@pytest.mark.parametrize("rate", [0.3, "auto"])
def test_no_loops_over_samples_or_classes(similarity, rate) -> None:
    """A step takes as many tensor operations for 200 samples of 100 classes as for 4 of 3."""

    def operations(batch: int, classes: int) -> int:
        generator = torch.Generator().manual_seed(0)
        prism = PRISM(classes, 8, rate, similarity, bank_size=500)
        vectors = normalize(torch.randn(batch, 8, generator=generator), dim=1)
        labels, index = torch.arange(batch) % classes, torch.arange(batch)
        prism.enqueue(vectors, labels, index)
        with _CountedOperations() as counted:
            prism(vectors, labels, index)
            prism.enqueue(vectors, labels, index)
        return counted.count

    assert operations(4, 3) == operations(200, 100) > 10


@pytest.mark.parametrize("similarity", ["centre", "exact", "vmf", "proxy"])
@pytest.mark.parametrize("rate", [0.3, "auto"])
def test_no_device_is_hard_coded(similarity, rate, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device an operation with a tensor of the CPU fails."""
    monkeypatch.setattr(
        torch, "autocast", lambda *a, **k: nullcontext()
    )  # it and quantile (smooth) do not know the device
    prism = PRISM(4, 8, rate, similarity, bank_size=10, threshold="top-r").to("meta")
    embeddings, labels = torch.empty(6, 8, device="meta"), torch.empty(6, dtype=torch.long, device="meta")
    proxies = torch.empty(6, 4, device="meta") if similarity == "proxy" else None
    selection = prism(embeddings, labels, None, proxies)
    prism.enqueue(embeddings, labels, labels)
    assert {value.device.type for value in vars(selection).values()} == {"meta"}
    assert {value.device.type for value in prism.state_dict().values()} == {"meta"}
