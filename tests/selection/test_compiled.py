"""torch.compile takes the selector whole, no graph break, and nothing it says or remembers changes."""

import copy
import shutil
from collections.abc import Callable
from dataclasses import astuple
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.torch_version import TorchVersion

from prism_dml.selection import PRISM, Selection

Step = Callable[..., Selection]

C, D, B = 6, 16, 12


def draw(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    embeddings = normalize(torch.randn(B, D, generator=generator), dim=1)
    labels = torch.randint(C, (B,), generator=generator)
    return embeddings, labels, torch.randint(-1, 15, (B,), generator=generator)


def step(prism: PRISM, *batch: Tensor) -> Selection:
    selection = prism(*batch)
    prism.enqueue(*batch)
    return selection


def step_on_kept(prism: PRISM, embeddings: Tensor, labels: Tensor, index: Tensor) -> Selection:
    """As in training: how many samples are kept, the graph does not know."""
    selection = prism(embeddings, labels, index)
    kept = selection.keep
    prism.enqueue(embeddings[kept], labels[kept], index[kept])
    return selection


def compare_with_eager(prism: PRISM, backend: str, steps: int, step: Step = step) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        prism.enqueue(*draw(generator))  # the memory has wrapped round: chains, and links that lead out
    twin = copy.deepcopy(prism)
    torch.compiler.reset()
    compiled = torch.compile(step, backend=backend, fullgraph=True)
    for _ in range(steps):
        batch = draw(generator)
        outputs = astuple(compiled(prism, *batch)), astuple(step(twin, *batch))
        for one, other in zip(*outputs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-6)
    for (key, one), other in zip(prism.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-6, equal_nan=True, msg=key)


@pytest.mark.parametrize(
    "similarity, rate, threshold, autocast",
    [
        ("centre", 0.3, "top-r", False),
        ("centre", "auto", "smooth", True),
        ("vmf", "auto", "smooth", False),
        ("exact", 0.3, "smooth", True),
    ],
)
def test_one_graph(similarity: Any, rate: Any, threshold: Any, autocast: bool) -> None:
    prism = PRISM(C, D, rate, similarity, bank_size=30, window=3, threshold=threshold, warmup=1)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        compare_with_eager(prism, "aot_eager", steps=3)


@pytest.mark.skipif(
    torch.__version__ < TorchVersion("2.14"), reason="`embeddings[kept]` in a graph: seen with 2.14 only"
)
def test_the_kept_samples_alone_are_remembered_in_the_same_graph() -> None:
    compare_with_eager(PRISM(C, D, 0.9, bank_size=30, window=2), "aot_eager", steps=6, step=step_on_kept)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_generated_code() -> None:
    compare_with_eager(PRISM(C, D, "auto", bank_size=30, window=3), "inductor", steps=4)


def test_a_wrong_label_stops_a_compiled_step_too() -> None:
    prism = PRISM(C, D, 0.3, bank_size=30)
    embeddings, labels, index = draw(torch.Generator().manual_seed(0))
    torch.compiler.reset()
    with pytest.raises((IndexError, RuntimeError)):
        torch.compile(step, backend="aot_eager", fullgraph=True)(prism, embeddings, labels + C, index)


def test_own_entries_as_an_operator() -> None:
    """What torch.compile assumes of it (shapes, no hidden writes) holds."""
    bank = PRISM(C, D, 0.3, bank_size=30).bank
    _, labels, index = draw(torch.Generator().manual_seed(0))
    chains = bank.embeddings, bank.labels, bank.index, bank.latest, bank.previous, bank.total
    torch.library.opcheck(torch.ops.prism_dml.own_entries, (*chains, labels, index, bank.size, 1))
