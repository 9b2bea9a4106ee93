"""Augmentation of a whole batch at once, on the device where the batch is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

AugmentKind = Literal["photo", "crop", "drawing", "none"]

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as torchvision's greyscale


@dataclass(frozen=True)
class Augment:
    """uint8 images (B, C, H, W), C = 1 or 3, to normalised float32 (B, 3, H, W), augmented with a generator.

    "drawing": rotation by at most 12 degrees, scale 0.8 to 1.2, shear up to 0.15, shift by at most 10 %; the
    border is repeated outwards; no flip, since a mirrored letter is another letter. "photo": a random crop of
    60 to 100 % of the area, sides 3:4 to 4:3, resized back, flipped with probability 1/2, brightness,
    contrast and saturation scaled by 0.7 to 1.3. "crop": 20 to 100 % of the whole image's area, half of them flipped,
    cut at its full resolution as it is decoded (`stream`); here as "none": only normalised, (x / 255 - mean) / std,
    which needs no generator.

    The parameters are drawn on the generator's device, so that a seed means the same on every device.

    Args:
        kind: "photo", "crop", "drawing" or "none".
        mean, std: of each of the three channels, for pixels in [0, 1].

    Raises:
        ValueError: unknown kind, or mean and std that are not three numbers, std > 0.
    """

    kind: AugmentKind
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)

    def __post_init__(self) -> None:
        if self.kind not in get_args(AugmentKind):
            raise ValueError(
                f"unknown augmentation {self.kind!r}, choose one of {', '.join(get_args(AugmentKind))}"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean and std must have three numbers, std > 0, not {self.mean} and {self.std}")

    def __call__(
        self,
        images: Tensor,
        generator: torch.Generator | None = None,
        places: Tensor | None = None,
        total: int | None = None,
    ) -> Tensor:
        """(B, C, H, W) uint8 -> (B, 3, H, W) float32.

        Images at `places` (B,) of a batch of `total` are augmented as they would be in the whole of it.
        """
        assert images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] in (1, 3)
        pixels = images.float()
        if self.kind in ("photo", "drawing") and len(images):
            assert generator is not None, "augmentation needs a generator"
            affine = _drawing_affine if self.kind == "drawing" else _crop_affine
            places = torch.arange(len(images)) if places is None else places
            total = len(images) if total is None else total
            theta = affine(total, generator)[places].to(images.device)  # (B, 2, 3)
            grid = affine_grid(theta, list(pixels.shape), align_corners=False)  # (B, H, W, 2)
            pixels = grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
            if self.kind == "photo":
                return self._jitter(pixels, _uniform(total, 3, generator)[places])
        return self._normalise(pixels)

    def _normalise(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) in 0 to 255 -> (B, 3, H, W)."""
        mean, std = (pixels.new_tensor(v).view(3, 1, 1) * 255 for v in (self.mean, self.std))
        if pixels.shape[1] == 1 and len(set(self.mean)) == len(set(self.std)) == 1:
            return ((pixels - mean[0]) / std[0]).expand(-1, 3, -1, -1)
        return (pixels - mean) / std

    def _jitter(self, pixels: Tensor, drawn: Tensor) -> Tensor:
        """Brightness, contrast, saturation and normalisation as one linear map of the colours of each image.

        Colours may leave [0, 1]: clipping would cost one more pass and teach nothing. drawn: (B, 3) in [0, 1].
        """
        batch, channels = pixels.shape[:2]
        factors = 0.7 + 0.6 * drawn.to(pixels.device)  # (B, 3)
        brightness, contrast, saturation = factors.view(batch, 3, 1, 1).unbind(1)  # each (B, 1, 1)
        luma = pixels.new_tensor(_LUMA if channels == 3 else [1.0])  # (C,)
        flat = pixels.flatten(2)  # (B, C, H * W)
        # Neither a matrix product here nor baddbmm over one channel: how they round depends on B.
        grey = (flat.mean(2) * luma).sum(1)  # (B,) mean brightness, the fixed point of contrast
        identity = torch.eye(channels, device=pixels.device)
        mix = saturation * identity + (1 - saturation) * luma  # (B, C, C) x -> s x + (1 - s) grey(x)
        mean, std = pixels.new_tensor(self.mean), pixels.new_tensor(self.std)
        scale = (brightness / (255 * std).view(3, 1)).expand(batch, 3, 1)  # (B, 3, 1)
        gain = scale * contrast * mix  # (B, 3, C)
        offset = scale * (1 - contrast) * grey.view(batch, 1, 1) - (mean / std).view(3, 1)  # (B, 3, 1)
        multiply_add = torch.addcmul if channels == 1 else torch.baddbmm
        return multiply_add(offset, gain, flat).view(batch, 3, *pixels.shape[2:])


def _uniform(batch: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(batch, count, generator=generator, device=generator.device)


def _drawing_affine(batch: int, generator: torch.Generator) -> Tensor:
    """(B, 2, 3) maps from output to input coordinates, both in [-1, 1]: shift + rotation . shear / scale."""
    u = 2 * _uniform(batch, 5, generator) - 1  # (B, 5) in [-1, 1]
    angle = u[:, 0] * math.radians(12)
    zoom = 1.0 / (1.0 + 0.2 * u[:, 1])
    shear = 0.15 * u[:, 2]
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    rows = [cos, shear * cos - sin, 0.2 * u[:, 3], sin, shear * sin + cos, 0.2 * u[:, 4]]
    return torch.stack(rows, 1).view(batch, 2, 3)


def _crop_affine(batch: int, generator: torch.Generator) -> Tensor:
    """(B, 2, 3) maps from output to input coordinates, both in [-1, 1]: crops, half of them flipped."""
    u = _uniform(batch, 5, generator)  # (B, 5)
    area = 0.6 + 0.4 * u[:, 0]
    aspect = torch.exp((2 * u[:, 1] - 1) * math.log(4 / 3))
    width = (area * aspect).sqrt().clamp(max=1.0)
    height = (area / aspect).sqrt().clamp(max=1.0)
    flip = torch.where(u[:, 4] < 0.5, -1.0, 1.0)
    zero = torch.zeros_like(width)
    rows = [
        width * flip,
        zero,
        (2 * u[:, 2] - 1) * (1 - width),
        zero,
        height,
        (2 * u[:, 3] - 1) * (1 - height),
    ]
    return torch.stack(rows, 1).view(batch, 2, 3)
