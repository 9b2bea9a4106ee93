import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from prism_dml.losses import InstanceLoss


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_it_is_the_share_of_the_own_target_among_those_of_the_batch() -> None:
    projected, targets, temperature = draw(6, 5), 3 * draw(6, 5, seed=1), 0.3
    expected = 0.0
    for i in range(6):
        scores = torch.stack([cosine_similarity(projected[i], t, dim=0) for t in targets]) / temperature
        expected -= scores.softmax(dim=0)[i].log() / 6
    torch.testing.assert_close(InstanceLoss(temperature)(projected, targets), torch.as_tensor(expected))


def test_what_has_no_target_is_not_asked_for_one() -> None:
    projected, targets = draw(6, 5).requires_grad_(), draw(6, 5, seed=1)
    targets[2] = 0
    InstanceLoss()(projected, targets).backward()
    rows = projected.grad.abs().sum(dim=1)
    assert rows[2] == 0 and (rows[[0, 1, 3, 4, 5]] > 0).all()
    loss = InstanceLoss()(projected, torch.zeros_like(targets))
    assert loss.item() == 0


def test_it_is_least_where_each_sample_is_its_target() -> None:
    targets = draw(8, 16)
    assert InstanceLoss()(targets, targets) < 0.5 * InstanceLoss()(targets.roll(1, 0), targets)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_is_computed_in_float32(dtype: torch.dtype) -> None:
    projected, targets = draw(6, 5).to(dtype), draw(6, 5, seed=1).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        loss = InstanceLoss()(projected, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, InstanceLoss()(projected.float(), targets.float()))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be above 0"):
        InstanceLoss(temperature)
