"""Encoded image bytes to upright 8-bit RGB."""

from __future__ import annotations

import io
import warnings
from typing import cast

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.Image import Transpose
from torchvision.transforms.v2 import functional as F

from prism_dml.data.folder import IMAGE_SUFFIXES
from prism_dml.data.remote import StoreError
from prism_dml.data.table import ImageTable

MAX_ASPECT = 16
"""Longer images are cut to this ratio of sides before they are resized, which bounds the memory they take."""
_FORMATS = sorted(
    {kind for suffix, kind in Image.registered_extensions().items() if suffix in IMAGE_SUFFIXES}
)
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation; 1 is upright."""

# Pillow's doubts about a file that it reads all the same are no news. In the whole process, since images are decoded in
# threads, where `catch_warnings` is not safe.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def decode_image(data: bytes) -> Image.Image:
    """An encoded image as RGB; ValueError if it is unreadable, or of a format that none of `IMAGE_SUFFIXES` stands for.

    Upright by its EXIF orientation, 16 bits scaled to 8, transparency laid over white, the first frame.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            image.load()
            return _to_rgb(_upright(image))
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged data, SyntaxError included
        raise ValueError(f"unreadable image: {_reason(data, error)}") from error


def read_image(table: ImageTable, i: int) -> Image.Image:
    """Image i of a table as RGB; ValueError naming it if it is missing or unreadable; StoreError of a store."""
    try:
        return decode_image(table.images.read(i))
    except StoreError:
        raise  # the network has failed, not the image
    except OSError as error:
        raise ValueError(f"{table.paths[i]!r}: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"{table.paths[i]!r}: {error}") from error


def square(image: Image.Image, size: int) -> Image.Image:
    """The centre of an image, `size` pixels square: short side resized to `size` (antialias), then cut.

    The same pixels as torchvision's `Resize(size)` and `CenterCrop(size)`, but where one side is more than 16 times
    the other: the ends of such an image are cut off first.
    """
    width, height = image.size
    longest = MAX_ASPECT * min(width, height)
    if max(width, height) > longest:
        image = F.center_crop(image, [min(height, longest), min(width, longest)])
    return cast(Image.Image, F.center_crop(F.resize(image, [size], antialias=True), [size, size]))


def _upright(image: Image.Image) -> Image.Image:
    """Turned by the EXIF orientation alone: other tags may be damaged, which does no harm to the pixels."""
    try:
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF raises nearly anything, too
        return image
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_16_bits(image).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image).astype(np.int32)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError("32-bit pixels have no known range")
    return Image.fromarray(((pixels + 128) // 257).astype(np.uint8))


def _reason(data: bytes, error: Exception) -> str:
    if not data:
        return "no bytes"
    if isinstance(error, UnidentifiedImageError):
        return "not a known image format"
    return " ".join(str(error).split()) or type(error).__name__
