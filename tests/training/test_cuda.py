"""What only a GPU can show: every method on it, repeatable, with the decisions of the CPU, and no waiting in a step."""

import signal
from dataclasses import astuple
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch.nn.functional import normalize

from prism_dml import find_label_issues
from prism_dml.losses.contrastive import MemoryContrastiveLoss
from prism_dml.methods.registry import METHODS
from prism_dml.retrieval import nearest_neighbours, retrieval_metrics
from prism_dml.selection import PRISM
from prism_dml.training import RunStopped, loop, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CLASSES, DIM, BATCH = 9, 16, 24


def draw(seed: int, count: int = BATCH) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings round class directions, a third of the labels wrong, and sample numbers."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(CLASSES, (count,), generator=generator)
    wrong = torch.rand(count, generator=generator) < 0.3
    labels = torch.where(wrong, torch.randint(CLASSES, (count,), generator=generator), truth)
    embeddings = torch.eye(DIM)[truth] + 0.3 * torch.randn(count, DIM, generator=generator)
    return normalize(embeddings, dim=1), labels, torch.randint(-2, 40, (count,), generator=generator)


def left_behind(out: Path) -> dict[str, bytes]:
    """Every file of a run."""
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_repeatable_and_resumes_bit_for_bit(
    method: str, precision: str, table, settings, monkeypatch, tmp_path: Path
) -> None:
    config = settings(method=method, precision=precision, accelerator="cuda")
    results = [train(table, config, tmp_path / name) for name in ("once", "twice")]
    added, calls = loop.Tally.add, []

    def add(self: loop.Tally, *counted: Any) -> None:
        calls.append(0)
        if len(calls) == 6:
            signal.raise_signal(signal.SIGTERM)
        added(self, *counted)

    monkeypatch.setattr(loop.Tally, "add", add)
    with pytest.raises(RunStopped):
        train(table, config, tmp_path / "cut")
    results.append(train(table, config, tmp_path / "cut", resume=True))
    assert results[0] == results[1] == results[2]
    once, twice, cut = (left_behind(tmp_path / name) for name in ("once", "twice", "cut"))
    assert once == twice
    assert once == cut


@pytest.mark.parametrize(
    "similarity, threshold, rate",
    list(product(["centre", "exact", "vmf", "proxy"], ["smooth", "top-r"], [0.3, "auto"])),
)
def test_the_selector_decides_as_on_the_cpu(similarity: Any, threshold: Any, rate: Any) -> None:
    here = PRISM(CLASSES, DIM, rate, similarity, 60, window=4, threshold=threshold)
    there = PRISM(CLASSES, DIM, rate, similarity, 60, window=4, threshold=threshold).cuda()
    rejected = 0
    for step in range(30):
        batch = draw(step)
        proxies = [torch.rand(BATCH, CLASSES, generator=torch.Generator().manual_seed(step))]
        proxies *= similarity == "proxy"
        expected = here(*batch, *proxies)
        found = there(*(column.cuda() for column in (*batch, *proxies)))
        assert all(column.is_cuda for column in astuple(found))
        torch.testing.assert_close(found.keep.cpu(), expected.keep)
        torch.testing.assert_close(
            found.clean_probability.cpu(), expected.clean_probability, rtol=1e-4, atol=1e-5
        )
        assert torch.equal(found.suggested_label.cpu(), expected.suggested_label)
        kept = expected.keep
        rejected += int((~kept).sum())
        here.enqueue(*(column[kept] for column in batch))
        there.enqueue(*(column[kept].cuda() for column in batch))
    torch.testing.assert_close(there.bank.centres.cpu(), here.bank.centres)
    assert there.noise_rate_estimate == pytest.approx(here.noise_rate_estimate, abs=1e-4)
    assert rejected > 30


@pytest.mark.parametrize("similarity", ["centre", "exact", "vmf"])
def test_a_step_of_the_selector_and_the_loss_never_waits_for_the_device(similarity: Any) -> None:
    """But for leave-one-out, which looks once for each entry that a sample has in the memory, and once more."""
    prism = PRISM(CLASSES, DIM, "auto", similarity, 60).cuda()
    criterion = MemoryContrastiveLoss()
    batches = [tuple(column.cuda() for column in draw(step)) for step in range(8)]
    before = torch.cuda.get_sync_debug_mode()
    for number, (embeddings, labels, index) in enumerate(batches):
        # Once all that is compiled or looked up at first is there, nothing may wait.
        torch.cuda.set_sync_debug_mode("error" if number > 3 else before)
        try:
            vectors = embeddings.clone().requires_grad_()
            prism(embeddings, labels)
            bank = prism.bank
            criterion(vectors, labels, bank.embeddings, bank.labels, index, bank.index).backward()
            prism.enqueue(embeddings, labels, index)
        finally:
            torch.cuda.set_sync_debug_mode(before)


def test_the_loss_is_that_of_the_cpu() -> None:
    criterion = MemoryContrastiveLoss()
    anchors, reference = draw(0), draw(1, 5000)
    answers = []
    for device in ("cpu", "cuda"):
        vectors, labels, index = (column.to(device) for column in anchors)
        rows, row_labels, row_index = (column.to(device) for column in reference)
        vectors = vectors.detach().requires_grad_()
        loss = criterion(vectors, labels, rows, row_labels, index, row_index)
        loss.backward()
        answers.append((loss.detach().cpu(), vectors.grad.cpu()))
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-4, atol=1e-3)


def test_neighbours_and_metrics_are_those_of_the_cpu() -> None:
    embeddings, labels, _ = draw(2, 3000)
    similarities, neighbours = nearest_neighbours(embeddings, k=7)
    there, found = nearest_neighbours(embeddings.cuda(), k=7)
    torch.testing.assert_close(there.cpu(), similarities, rtol=1e-5, atol=1e-5)
    assert (found.cpu() == neighbours).float().mean() > 0.999, "but for ties of rounding"
    expected = retrieval_metrics(embeddings, labels)
    assert retrieval_metrics(embeddings.cuda(), labels.cuda()) == pytest.approx(expected, abs=1e-3)


def test_issues_are_those_that_the_cpu_finds() -> None:
    embeddings, labels, _ = draw(3, 2000)
    expected, found = find_label_issues(embeddings, labels), find_label_issues(embeddings.cuda(), labels)
    assert (expected["is_label_issue"] == found["is_label_issue"]).mean() > 0.998
    assert (expected["suggested_label"] == found["suggested_label"]).mean() > 0.998
    pd.testing.assert_series_equal(expected["label_score"], found["label_score"], atol=0.02)
