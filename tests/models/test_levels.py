import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

from prism_dml.models import Embedder
from prism_dml.models.levels import DIRECTIONS, WithLevels, side_by_side, widths

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


def levels(count=60, seed=0):
    return torch.rand(count, sum(WIDTHS), generator=torch.Generator().manual_seed(seed)) + 0.1


def similarities(rows):
    return rows @ rows.T


def test_all_numbers_are_equally_wide_and_all_blocks_equally_long():
    given = levels()
    rows = side_by_side(given, WIDTHS)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(60))
    scale = torch.linspace(0.1, 30, sum(WIDTHS))
    torch.testing.assert_close(
        similarities(side_by_side(given * scale + 7, WIDTHS)), similarities(rows), atol=1e-4, rtol=0
    )
    blocks = torch.split((given - given.mean(0)) / given.std(0, correction=0), WIDTHS, dim=1)
    cosines = torch.stack([torch.cosine_similarity(b[:, None], b[None], dim=2) for b in blocks])
    torch.testing.assert_close(similarities(rows), cosines.mean(0), atol=1e-5, rtol=0)


def test_what_was_not_seen_stays_zero_and_does_not_count():
    given = levels()
    holes = torch.cat([torch.zeros(2, given.shape[1]), given])
    rows = side_by_side(holes, WIDTHS)
    assert (rows[:2] == 0).all()
    torch.testing.assert_close(
        similarities(rows[2:]), similarities(side_by_side(given, WIDTHS)), atol=1e-5, rtol=0
    )
    assert (side_by_side(torch.zeros_like(given), WIDTHS) == 0).all()


def test_a_channel_that_is_always_the_same_says_nothing():
    given = levels()
    given[:, 0] = 0.5
    rows = side_by_side(given, WIDTHS)
    assert rows.isfinite().all()
    given[:, 0] = 3.0
    torch.testing.assert_close(
        similarities(side_by_side(given, WIDTHS)), similarities(rows), atol=1e-5, rtol=0
    )


def test_many_numbers_are_compared_in_their_leading_directions(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(500, 10, generator=generator)
    given = few @ torch.randn(10, 2 * DIRECTIONS, generator=generator)
    given += 0.01 * torch.randn(given.shape, generator=generator)
    rows = side_by_side(given, (DIRECTIONS, DIRECTIONS))
    assert rows.shape == (500, DIRECTIONS)
    blocks = torch.split((given - given.mean(0)) / given.std(0, correction=0), DIRECTIONS, dim=1)
    cosines = torch.stack([torch.cosine_similarity(b[:, None], b[None], dim=2) for b in blocks])
    torch.testing.assert_close(similarities(rows), cosines.mean(0), atol=0.01, rtol=0)
    monkeypatch.setattr("prism_dml.models.levels._ENOUGH", 100)  # the directions of a part of the samples
    torch.testing.assert_close(
        similarities(side_by_side(given, (DIRECTIONS, DIRECTIONS))), cosines.mean(0), atol=0.02, rtol=0
    )


@pytest.mark.parametrize("count", [20, 300, 700])
def test_numbers_that_hang_on_others(count):
    """Maps of few pixels have equal quarters, few samples few directions."""
    generator = torch.Generator().manual_seed(0)
    once = torch.rand(count, 100, generator=generator)
    once[:, 7] = 0
    given = once.repeat(1, 4)
    rows = side_by_side(given, (200, 200))
    assert rows.isfinite().all() and rows.shape == (count, 400 if count == 20 else DIRECTIONS)
    torch.testing.assert_close(
        similarities(rows), similarities(side_by_side(once, (100,))), atol=1e-4, rtol=0
    )
