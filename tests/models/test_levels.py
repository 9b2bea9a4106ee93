import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

from prism_dml.models import Embedder
from prism_dml.models.levels import WithLevels, widths

WIDTHS = (4, 6, 5)


def images(side=16, seed=0):
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(seed))


def embedder(**options):
    return Embedder("small", 8, image_size=16, backbone_options={"widths": WIDTHS} | options).eval()


def by_hand(model, x, residual):
    """The maps after each block, which has four layers, and all but the first one a residual one if there are any."""
    ends, maps = ([3, 8, 13] if residual else [3, 7, 11]), []
    for position, layer in enumerate(model.backbone):
        x = layer(x)
        if position in ends:
            maps.append(x.clone())  # before the next one writes into it
    return maps


@pytest.mark.parametrize("options", [{}, {"residual": True}, {"grid": 2}])
@pytest.mark.parametrize("side", [16, 5])
@torch.no_grad()
def test_the_embedding_and_the_map_of_each_block(options, side):
    model, x = embedder(**options), images(side)
    seen = WithLevels(model)(x)
    maps = by_hand(model, x, options.get("residual", False))
    assert [map_.shape[1] for map_ in maps] == list(WIDTHS)
    levels = torch.cat([adaptive_avg_pool2d(map_, 2).flatten(1) for map_ in maps], dim=1)
    torch.testing.assert_close(seen, torch.cat([model(x), levels], dim=1))
    assert widths(model) == (16, 24, 20) and levels.shape[1] == sum(widths(model))


@torch.no_grad()
def test_the_network_is_left_as_it_was():
    for training in (True, False):
        model = embedder().train(training)
        observer = WithLevels(model)
        assert observer.training == training == model.training
        observer(images())
        with pytest.raises(RuntimeError):
            observer(torch.zeros(3, 2, 16, 16))
        assert not any(module._forward_hooks for module in model.modules())


@torch.no_grad()
def test_of_a_backbone_whose_blocks_are_not_known_it_is_the_embedding():
    model = Embedder("resnet10t", 8, image_size=32).eval()
    assert widths(model) == ()
    torch.testing.assert_close(WithLevels(model)(images(32)), model(images(32)))


@torch.no_grad()
def test_levels_are_float32_under_autocast():
    model = embedder()
    with torch.autocast("cpu", torch.bfloat16):
        seen = WithLevels(model)(images())
    assert seen.dtype == torch.float32
    torch.testing.assert_close(seen, WithLevels(model)(images()), atol=0.05, rtol=0.05)
