"""torch.compile takes the losses whole, no graph break; loss and gradient are those of eager mode."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from prism_dml.losses import (
    ContrastiveLoss,
    InstanceLoss,
    MemoryContrastiveLoss,
    PrototypeLoss,
    SoftTripleLoss,
    contrastive,
)

C, D, B, M = 5, 16, 12, 40
GENERATOR = torch.Generator().manual_seed(0)
LABELS, INDEX = torch.randint(C, (B,), generator=GENERATOR), torch.arange(B)
BANK = normalize(torch.randn(M, D, generator=GENERATOR), dim=1)
BANK_LABELS, BANK_INDEX = torch.randint(-1, C, (M,), generator=GENERATOR), torch.arange(M)
CENTRES = torch.randn(C, D, generator=GENERATOR)

LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "contrastive": lambda e: ContrastiveLoss()(e, LABELS),
    "memory": lambda e: MemoryContrastiveLoss()(e, LABELS, BANK, BANK_LABELS),
    "memory, samples known": lambda e: MemoryContrastiveLoss(0.1)(
        e, LABELS, BANK, BANK_LABELS, INDEX, BANK_INDEX
    ),
    "instance": lambda e: InstanceLoss()(e, BANK[:B]),
    "prototypes": lambda e: PrototypeLoss()(e, INDEX, BANK, BANK_LABELS, BANK_INDEX, CENTRES),
}


def with_gradient(function: Callable[[Tensor], Tensor], raw: Tensor) -> tuple[Tensor, Tensor]:
    leaf = raw.clone().requires_grad_()
    loss = function(leaf)
    loss.backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


def check(function: Callable[[Tensor], Tensor], backend: str, autocast: bool) -> None:
    raw = torch.randn(B, D, generator=torch.Generator().manual_seed(1))
    torch.compiler.reset()

    def from_raw(rows: Tensor) -> Tensor:
        return function(normalize(rows, dim=1))

    compiled = torch.compile(from_raw, backend=backend, fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got, expected = with_gradient(compiled, raw), with_gradient(from_raw, raw)
    assert expected[0] > 0 and expected[1].abs().max() > 0
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", LOSSES)
def test_one_graph(name: str) -> None:
    check(LOSSES[name], "aot_eager", autocast=name != "memory")


def test_soft_triple_is_one_graph() -> None:
    criterion = SoftTripleLoss(C, D)
    check(lambda e: criterion(e, LABELS), "aot_eager", autocast=False)


def test_pair_sum_as_an_operator() -> None:
    """What torch.compile assumes of it (shapes, gradient, no hidden writes) holds."""
    anchors = BANK[:B].clone().requires_grad_()
    for known in ((None, None), (INDEX, BANK_INDEX)):
        arguments = (anchors, LABELS, known[0], BANK, BANK_LABELS, known[1], 0.5, 1)
        parts = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(contrastive._pair_sum, arguments, test_utils=parts)
