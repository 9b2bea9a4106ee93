"""The small network: sizes, shapes, gradients."""

import pytest
import torch
from torch import nn

from prism_dml.models import SmallConvNet


@pytest.mark.parametrize("size", [1, 28, 33, 48, 96])
@pytest.mark.parametrize(("residual", "grid"), [(False, 1), (True, 1), (False, 3)])
def test_any_size(size, residual, grid):
    net = SmallConvNet((8, 8, 12), residual, grid)
    features = net(torch.randn(2, 3, size, size))
    assert features.shape == (2, net.num_features) == (2, 12 * grid**2)
    features.sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_each_block_halves_the_map_rounding_up():
    net, sides = SmallConvNet((4, 4, 4)), []
    for layer in net:
        if isinstance(layer, nn.ReLU):
            layer.register_forward_hook(lambda *call: sides.append(call[2].shape[-1]))
    net(torch.zeros(1, 3, 33, 33))
    assert sides == [17, 9, 5]


def test_memory_format_does_not_change_the_features():
    net, images = SmallConvNet((8, 8), True).eval(), torch.randn(2, 3, 28, 28)
    expected = net(images)
    fast = net.to(memory_format=torch.channels_last)
    torch.testing.assert_close(fast(images.contiguous(memory_format=torch.channels_last)), expected)


def test_widths_and_residual_count():
    sizes = [sum(p.numel() for p in SmallConvNet((8, 16), r).parameters()) for r in (False, True)]
    assert sizes[0] == 3 * 8 * 9 + 2 * 8 + 8 * 16 * 9 + 2 * 16
    assert sizes[1] == sizes[0] + 16 * 16 * 9 + 2 * 16


@pytest.mark.parametrize("bad", [{"widths": ()}, {"widths": (8, 0)}, {"grid": 0}])
def test_mistakes(bad):
    with pytest.raises(ValueError, match="at least 1"):
        SmallConvNet(**bad)
