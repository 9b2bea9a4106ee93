import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from prism_dml.data import augment as module
from prism_dml.data.augment import Augment


def images(batch: int = 8, channels: int = 3, height: int = 20, width: int = 20) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (batch, channels, height, width), dtype=torch.uint8, generator=generator)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", ["photo", "drawing", "none"])
@pytest.mark.parametrize("channels", [1, 3])
def test_shape_type_and_pure_function_of_images_and_generator(
    kind: module.AugmentKind, channels: int
) -> None:
    augment, batch = Augment(kind), images(channels=channels, height=18, width=24)
    state = torch.get_rng_state()
    before = batch.clone()
    out = augment(batch, seeded())
    assert out.shape == (8, 3, 18, 24) and out.dtype == torch.float32 and out.isfinite().all()
    assert torch.equal(out, augment(batch, seeded()))
    assert torch.equal(out, augment(batch, seeded(1))) == (kind == "none")
    assert torch.equal(torch.get_rng_state(), state), "the global generator is not used"
    assert torch.equal(batch, before)
    assert augment(batch[:0], seeded()).shape == (0, 3, 18, 24)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["photo", "drawing", "none"])
def test_same_seed_is_the_same_on_every_device(kind: module.AugmentKind) -> None:
    there = Augment(kind)(images().cuda(), seeded())
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), Augment(kind)(images(), seeded()), atol=2e-3, rtol=0)


def test_none_normalises_each_channel() -> None:
    batch = images()
    out = Augment("none", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))(batch)
    expected = tv.normalize(batch.float() / 255, [0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    torch.testing.assert_close(out, expected)
    grey = Augment("none", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))(batch[:, :1])
    torch.testing.assert_close(grey, tv.normalize(batch[:, :1].float().expand(-1, 3, -1, -1) / 255,
                                                  [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]))  # fmt: skip


@pytest.mark.parametrize("kind", ["photo", "drawing", "none"])
@pytest.mark.parametrize("mean", [(0.5, 0.5, 0.5), (0.485, 0.456, 0.406)])
def test_one_channel_is_the_same_as_three_equal_ones(
    kind: module.AugmentKind, mean: tuple[float, float, float]
) -> None:
    grey = images(channels=1)
    augment = Augment(kind, mean=mean)
    torch.testing.assert_close(
        augment(grey, seeded()), augment(grey.expand(-1, 3, -1, -1), seeded()), atol=1e-5, rtol=1e-5
    )


def test_constant_image_stays_constant_under_drawing() -> None:
    batch = torch.full((16, 1, 12, 12), 204, dtype=torch.uint8)
    out = Augment("drawing")(batch, seeded())
    torch.testing.assert_close(out, torch.full((16, 3, 12, 12), (0.8 - 0.5) / 0.25))


def test_drawing_parameters_within_their_ranges_and_never_mirrored() -> None:
    theta = module._drawing_affine(4000, seeded())
    matrix, shift = theta[:, :, :2].double(), theta[:, :, 2]
    assert (torch.linalg.det(matrix) > 0).all()
    zoom = torch.linalg.det(matrix).sqrt()
    assert 1 / 1.2 - 1e-6 <= zoom.min() < 0.84 and 1.24 < zoom.max() <= 1 / 0.8 + 1e-6
    angle = torch.atan2(matrix[:, 1, 0], matrix[:, 0, 0]).abs() * 180 / math.pi
    assert 11.5 < angle.max() <= 12 + 1e-4
    assert 0.19 < shift.abs().max() <= 0.2, "10 % of an extent of 2"


def test_drawing_is_the_affine_map_that_torchvision_applies() -> None:
    batch = images(1, 1, 32, 32)
    batch = tv.gaussian_blur(batch, [9, 9], [3.0, 3.0])
    u = torch.tensor([[1.0, 0.5, 0.0, 0.5, -0.25]])  # 12 degrees, scale 1.1, no shear, shift of 5 and -2.5 %
    original = module._uniform
    module._uniform = lambda *_: (u + 1) / 2  # type: ignore[assignment]
    try:
        out = Augment("drawing")(batch, seeded())
    finally:
        module._uniform = original
    # Output o shows input A o + t: the inverse moves by -A^-1 t. torchvision rotates clockwise for positive
    # angles.
    angle = math.radians(12)
    t = torch.tensor([0.05 * 32, -0.025 * 32])
    inverse = 1.1 * torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    move = (-(inverse @ t)).tolist()
    expected = tv.affine(
        batch.float(), -12.0, move, 1.1, [0.0, 0.0], interpolation=tv.InterpolationMode.BILINEAR
    )
    inner = slice(8, 24)  # torchvision fills with zeros outside the image
    difference = out[:, :1, inner, inner] - ((expected / 255 - 0.5) / 0.25)[:, :, inner, inner]
    assert difference.abs().max() < 0.02


def test_crops_lie_in_the_image_with_the_stated_areas_and_half_are_flipped() -> None:
    theta = module._crop_affine(4000, seeded())
    width, height = theta[:, 0, 0].abs(), theta[:, 1, 1]
    assert (width + theta[:, 0, 2].abs() <= 1 + 1e-6).all() and (
        height + theta[:, 1, 2].abs() <= 1 + 1e-6
    ).all()
    area = width * height
    assert 0.6 - 1e-6 <= area.min() < 0.61 and 0.95 < area.max() <= 1
    aspect = width / height
    assert 0.75 - 1e-6 <= aspect.min() < 0.77 and 1.31 < aspect.max() <= 4 / 3 + 1e-6
    assert abs((theta[:, 0, 0] < 0).float().mean() - 0.5) < 0.05
    assert (theta[:, 0, 1] == 0).all() and (theta[:, 1, 0] == 0).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_colour_jitter_is_torchvisions_without_clipping(
    channels: int,
) -> None:
    batch = images(6, channels) // 4 + 96  # far enough from 0 and 255 that nothing clips
    factors = torch.tensor(
        [[1.2, 1.0, 1.0], [1.0, 0.7, 1.0], [1.0, 1.0, 0.7], [1.0, 1.0, 1.3], [0.9, 1.2, 0.8], [1, 1, 1]]
    )
    augment = Augment("photo", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    out = augment._jitter(batch.float(), (factors - 0.7) / 0.6)
    for image, (brightness, contrast, saturation), got in zip(batch, factors.tolist(), out, strict=True):
        x = image.float().div(255).expand(3, -1, -1)
        x = tv.adjust_saturation(
            tv.adjust_contrast(tv.adjust_brightness(x, brightness), contrast), saturation
        )
        torch.testing.assert_close(
            got, tv.normalize(x, list(augment.mean), list(augment.std)), atol=2e-3, rtol=0
        )


@pytest.mark.parametrize("kind", ["photo", "drawing", "none"])
@pytest.mark.parametrize("channels", [1, 3])
def test_some_images_of_a_batch_are_augmented_as_in_the_whole_of_it(kind, channels: int) -> None:
    """To the last bit: processes that share a batch out must train what one does."""
    batch, augment = images(64, channels), Augment(kind, mean=(0.485, 0.456, 0.406))
    whole = augment(batch, seeded())
    parts = [torch.arange(64)[at : at + size] for size in (1, 3, 5, 9, 32) for at in range(0, 64, size)]
    for places in [*parts, torch.tensor([1, 4, 12])]:
        part = augment(batch[places], seeded(), places, 64)
        torch.testing.assert_close(part, whole[places], rtol=0, atol=0)


def test_errors() -> None:
    with pytest.raises(ValueError, match="unknown augmentation 'foto', choose one of photo"):
        Augment("foto")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="three numbers"):
        Augment("none", std=(0.0, 1.0, 1.0))
    with pytest.raises(AssertionError):
        Augment("photo")(images())
