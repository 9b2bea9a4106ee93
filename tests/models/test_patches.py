from unittest import mock

import pytest
import torch
from torch.nn.functional import normalize

from prism_dml.models.patches import FILTERS, LENGTH, PATCH, SIDE, Patches, PatchFeatures


def textures(count, side=SIDE, seed=0):
    """Stripes in four directions, an image after another, at places and of a contrast of their own."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    ways = torch.stack([x, y, x + y, x - y])[torch.arange(count) % 4]
    shift = 6 * torch.rand(count, 1, 1, generator=generator)
    waves = torch.sin(ways * (32 / side) + shift) * (0.5 + torch.rand(count, 1, 1, generator=generator))
    noise = 0.1 * torch.randn(count, 3, side, side, generator=generator)
    return waves[:, None] + noise


def unit(features):
    return normalize(features - features.mean(dim=0), dim=1)


@pytest.mark.parametrize("side", [SIDE, 48, 20, 3])
def test_images_of_any_size(side):
    images = textures(12, side)
    patches = Patches()(images)
    assert patches.shape[0] == 12 and patches.shape[1] % (3 * PATCH**2) == 0
    features = PatchFeatures(patches)(images)
    assert features.shape == (12, LENGTH) and features.isfinite().all() and (features >= 0).all()


def test_patches_are_of_the_images():
    images = torch.arange(3 * SIDE**2).float().view(1, 3, SIDE, SIDE)
    first = Patches()(images).view(-1, 3, PATCH, PATCH)[0]
    corner = int(first[0, 0, 0])
    y, x = divmod(corner, SIDE)
    torch.testing.assert_close(first, images[0, :, y : y + PATCH, x : x + PATCH])


def test_they_tell_what_images_look_like():
    images = textures(80)
    rows = unit(PatchFeatures(Patches()(images))(images))
    alike = (rows @ rows.T).fill_diagonal_(-1).argmax(dim=1)
    assert (alike % 4 == torch.arange(80) % 4).all()


def test_of_many_images_some_say_how_to_whiten():
    images = textures(80)
    patches = Patches()(images)
    patches[::2] = 0  # as if they could not be read
    with mock.patch("prism_dml.models.patches._MOST_WHITENED", 20):
        some, same = (PatchFeatures(rows).filters for rows in (patches, patches[1::2]))
        few = PatchFeatures(patches[1:41:2]).filters
    torch.testing.assert_close(some, same)
    assert not torch.equal(some, PatchFeatures(patches).filters)
    torch.testing.assert_close(few, PatchFeatures(patches[1:41:2]).filters)


def test_brightness_does_not_count_and_contrast_hardly():
    images = textures(40)
    network = PatchFeatures(Patches()(images))
    torch.testing.assert_close(network(images + 3), network(images), atol=1e-3, rtol=1e-3)
    assert (torch.cosine_similarity(network(2 * images), network(images)) > 0.98).all()


def test_neither_the_batch_nor_what_cannot_be_read_counts():
    images = textures(40)
    patches = Patches()(images)
    network = PatchFeatures(patches)
    parts = torch.cat([network(part) for part in images.split(7)])
    torch.testing.assert_close(parts, network(images), atol=1e-5, rtol=1e-5)
    holes = torch.cat([patches[:3], torch.zeros(2, patches.shape[1]), patches[3:]])
    torch.testing.assert_close(PatchFeatures(holes)(images), network(images))


def test_few_images_are_enough():
    images = textures(1)
    network = PatchFeatures(Patches()(images))
    assert network.filters.shape == (FILTERS, 3, PATCH, PATCH) and network(images).isfinite().all()


def test_images_without_anything_to_see():
    images = torch.full((4, 3, SIDE, SIDE), 0.3)
    assert PatchFeatures(Patches()(images))(images).isfinite().all()


def test_float32_under_autocast():
    images = textures(8)
    network = PatchFeatures(Patches()(images))
    with torch.autocast("cpu", torch.bfloat16):
        features = network(images)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, network(images))
