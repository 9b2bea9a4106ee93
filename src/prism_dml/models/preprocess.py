"""From a picture to what a model was trained to see."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F


@dataclass(frozen=True)
class Preprocess:
    """Evaluation's preprocessing: short side resized (bilinear, antialias), centre cut, normalised.

    Of pictures that are upright and opaque: `prism_dml.data.decode_image` makes them of a file's bytes. It turns them
    by their EXIF orientation, lays transparency over white and scales 16 bits to 8; this does not.
    """

    image_size: int
    """Side of the result in pixels."""
    resize_size: int
    """Short side before the centre is cut out, in pixels; at least image_size."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Subtracted from red, green, blue in [0, 1]."""
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)
    """What they are divided by after that."""

    def __post_init__(self) -> None:
        if not 1 <= self.image_size <= self.resize_size:
            raise ValueError(
                "image_size must be at least 1 and at most resize_size, "
                f"got {self.image_size} and {self.resize_size}"
            )
        if not (len(self.mean) == len(self.std) == 3 and min(self.std) > 0):
            raise ValueError(f"mean and std need three numbers, std above 0, got {self.mean} and {self.std}")

    def __call__(self, image: Image.Image) -> Tensor:
        """A picture of any size, converted to RGB -> (3, image_size, image_size) float32."""
        resized = F.resize(image.convert("RGB"), [self.resize_size], antialias=True)
        square = F.center_crop(resized, [self.image_size, self.image_size])
        pixels = F.to_dtype(F.pil_to_tensor(square), torch.float32, scale=True)
        result: Tensor = F.normalize(pixels, list(self.mean), list(self.std))
        return result

    def as_dict(self) -> dict[str, Any]:
        """The fields, JSON-able."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Preprocess":
        """The inverse of as_dict. ValueError if a field is missing, unknown or out of range."""
        try:
            # JSON has lists where the fields are tuples.
            return cls(**fields | {k: tuple(fields[k]) for k in ("mean", "std") if k in fields})
        except TypeError as error:
            raise ValueError(f"bad preprocessing: {error}") from None
