"""Which steps are made, and what of the others is undone."""

import math

import pytest
import torch
from torch import nn

from prism_dml.models import Embedder
from prism_dml.selection import PRISM
from prism_dml.training.guard import Guard


class Small(nn.Module):
    """A network with batch statistics, and a selector with a memory and thresholds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
        self.selector = PRISM(2, 4, 0.5, bank_size=8, window=3)

    def step(self, x: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
        labels = torch.arange(len(x)) % 2
        embeddings = self.network(x)
        self.selector(embeddings.detach(), labels)
        loss = embeddings.square().sum() * factor
        self.zero_grad()
        loss.backward()
        return loss


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone().nan_to_num() for key, value in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.fixture
def model() -> Small:
    model = Small()
    model.selector.enqueue(nn.functional.normalize(torch.randn(6, 4)), torch.arange(6) % 2)
    return model


def test_a_good_step_is_made_and_leaves_gradients_alone(model) -> None:
    guard = Guard(model, 1)
    before = state(model)
    guard.remember()
    loss = model.step(torch.randn(6, 3))
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    assert guard.accepts(loss, 1)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert not same(before, state(model)), "batch statistics have moved"


@pytest.mark.parametrize(
    "factor, value", [(1.0, math.nan), (1.0, math.inf), (math.nan, 1.0), (1e38, 1.0), (1e30, 9.0)]
)
def test_a_bad_step_is_undone(model, factor: float, value: float) -> None:
    """1e38 makes an infinite loss of finite embeddings; 1e30 a finite one, whose gradient overflows."""
    guard = Guard(model, 2)
    guard.remember()
    model.step(torch.randn(6, 3))
    before = state(model)
    guard.remember()
    loss = model.step(torch.full((6, 3), value) * torch.randn(6, 3), factor)
    assert not same(before, state(model))
    assert not guard.accepts(loss, 2)
    assert same(before, state(model))
    assert (guard.skipped, guard.in_a_row) == (1, 1)


def test_only_steps_in_a_row_end_the_run(model) -> None:
    guard = Guard(model, 2)

    def accepts(good: bool) -> bool:
        guard.remember()
        return guard.accepts(model.step(torch.randn(6, 3), 1.0 if good else math.nan), 7)

    assert [accepts(good) for good in (False, True, False, True, False)] == [False, True, False, True, False]
    with pytest.raises(ValueError, match="not finite in 2 steps in a row, up to step 7"):
        accepts(False)
    assert guard.skipped == 4


def test_counts_are_state(model) -> None:
    guard, other = Guard(model, 5), Guard(model, 5)
    guard.remember()
    guard.accepts(model.step(torch.randn(6, 3), math.nan), 1)
    other.load_state_dict(guard.state_dict())
    assert (other.skipped, other.in_a_row) == (1, 1)


def test_a_copy_of_a_network_has_no_guard_of_its_own() -> None:
    """With it would come all that the guard knows, the backbone's weights among it."""
    method = nn.Module()
    method.embedder = Embedder(embedding_dim=4)
    guard = Guard(method, 1)
    copied = method.embedder.mapped(torch.eye(4))
    copied.train()(torch.zeros(2, 3, 48, 48))
    assert len(guard._embeddings) == 1, "it is the same guard that looks"
