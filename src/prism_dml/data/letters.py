"""Letters set in real typefaces: the demonstration's images, which need no download."""

from __future__ import annotations

import io
import unicodedata
from functools import lru_cache
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from prism_dml.data.table import BytesImages, ImageTable

FAMILIES = ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif", "STIXGeneral")
STYLES = ("", "-Bold", "-Oblique", "-BoldOblique", "-Italic", "-BoldItalic", "Bol", "Italic", "BolIta")
SCRIPTS = {"Latin": range(0x41, 0x250), "Greek": range(0x370, 0x400), "Cyrillic": range(0x400, 0x530)}
TRAIN_SHARE = 2 / 3
LOOK_ALIKE = 0.9
"""Cosine of two size-normalised bitmaps from which their characters count as the same shape."""

_OVERSAMPLING = 4
_BITMAP = 24


def letters_table(size: int = 32, seed: int = 0) -> tuple[ImageTable, ImageTable]:
    """Digits and Latin, Greek and Cyrillic letters, black on white, each in the typefaces of matplotlib.

    A class is a character, an image is a character in one of the 16 typefaces (DejaVu Sans, Sans Mono and
    Serif, and STIX General, upright and slanted, regular and bold). Each image is centred, with a random size
    (55 to 75 % of the image), shift (up to 8 %) and rotation (up to 12 degrees).

    Only characters that every typeface has take part, and only truly different shapes: each character, ASCII
    first, then by code point, is dropped if it is the shape of one that was kept, in any of the typefaces:
    the cosine of their bitmaps, cut to the ink and scaled to the same longer side, is above 0.9. So of O, o,
    0 and the Greek and Cyrillic O one is left, and Cyrillic letters that turn into Latin ones in italics go.

    Args:
        size: side of the images in pixels, at least 8.
        seed: non-negative; of the split and of size, shift and rotation.

    Returns:
        Training table (two thirds of the characters of each script) and test table (the others), images as
        PNG.

    Raises:
        ValueError: size or seed out of range, or matplotlib comes without its typefaces.
    """
    if size < 8:
        raise ValueError(f"letters need a size of at least 8 pixels, not {size}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, not {seed}")
    train: list[str] = []
    test: list[str] = []
    rng = np.random.default_rng(seed)
    for script in ("Digit", *SCRIPTS):
        characters = [c for c in characters_of_shapes() if _script(c) == script]
        shuffled = [characters[i] for i in rng.permutation(len(characters))]
        cut = round(TRAIN_SHARE * len(shuffled))
        train += shuffled[:cut]
        test += shuffled[cut:]
    return _draw_table(sorted(train), size, seed), _draw_table(sorted(test), size, seed)


@lru_cache(maxsize=1)
def characters_of_shapes() -> tuple[str, ...]:
    """The characters of `letters_table`, by the rule stated there."""
    from matplotlib.ft2font import FT2Font

    shared = set.intersection(*(set(FT2Font(str(file)).get_charmap()) for file in typefaces()))
    candidates = [chr(code) for code in chain(range(0x30, 0x3A), *SCRIPTS.values()) if code in shared]
    # A letter with a decomposition is another letter with an accent.
    candidates = [
        c
        for c in candidates
        if unicodedata.category(c) in ("Lu", "Ll", "Nd") and not unicodedata.decomposition(c)
    ]
    alike = np.zeros((len(candidates), len(candidates)), bool)
    for file in typefaces():
        font = _font(file, 64)
        bitmaps = np.stack([_bitmap(c, font) for c in candidates])  # (characters, pixels) unit length
        alike |= bitmaps @ bitmaps.T > LOOK_ALIKE
    kept: list[int] = []
    for i in range(len(candidates)):
        if not alike[i, kept].any():
            kept.append(i)
    return tuple(candidates[i] for i in kept)


@lru_cache(maxsize=1)
def typefaces() -> tuple[Path, ...]:
    """The files of the typefaces, in a fixed order."""
    from matplotlib import get_data_path

    folder = Path(get_data_path(), "fonts", "ttf")
    files = tuple(
        file for family in FAMILIES for style in STYLES if (file := folder / f"{family}{style}.ttf").is_file()
    )
    if len(files) < 8:
        raise ValueError(f"matplotlib's typefaces are missing: {len(files)} of 16 are in {folder}")
    return files


def _script(character: str) -> str:
    return next((name for name, codes in SCRIPTS.items() if ord(character) in codes), "Digit")


def _font(file: Path, pixels: float) -> ImageFont.FreeTypeFont:
    # The basic layout is in every build of Pillow, so that images are the same everywhere.
    return ImageFont.truetype(str(file), pixels, layout_engine=ImageFont.Layout.BASIC)


def _bitmap(character: str, font: ImageFont.FreeTypeFont) -> NDArray[np.float64]:
    """(pixels,) of unit length: the ink of a character, its longer side scaled to the frame, centred."""
    left, top, right, bottom = font.getbbox(character)
    ink = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
    ImageDraw.Draw(ink).text((1 - left, 1 - top), character, font=font, fill=255)
    ink = ink.crop(ink.getbbox())
    scale = _BITMAP / max(ink.size)
    ink = ink.resize([max(1, round(side * scale)) for side in ink.size], Image.Resampling.BOX)
    frame = Image.new("L", (_BITMAP, _BITMAP))
    frame.paste(ink, ((_BITMAP - ink.width) // 2, (_BITMAP - ink.height) // 2))
    pixels = np.asarray(frame, np.float64).ravel()
    return pixels / np.linalg.norm(pixels)


def _draw_table(characters: list[str], size: int, seed: int) -> ImageTable:
    faces = typefaces()
    images = [_draw(c, file, size, (seed, ord(c), k)) for c in characters for k, file in enumerate(faces)]
    return ImageTable(
        BytesImages(images),
        [f"{c}/{file.stem}.png" for c in characters for file in faces],
        np.repeat(np.arange(len(characters)), len(faces)),
        characters,
    )


def _draw(character: str, file: Path, size: int, seed: tuple[int, int, int]) -> bytes:
    """PNG of a character, drawn large and reduced, with the size, shift and rotation of its own seed."""
    extent, angle, right, down = np.random.default_rng(seed).uniform(
        [0.55, -12, -0.08, -0.08], [0.75, 12, 0.08, 0.08]
    )
    side = size * _OVERSAMPLING
    box = _font(file, side).getbbox(character)
    font = _font(file, side * extent * side / max(box[2] - box[0], box[3] - box[1]))
    box = font.getbbox(character)
    canvas = Image.new("L", (side, side), 255)
    corner = ((side - box[0] - box[2]) / 2, (side - box[1] - box[3]) / 2)
    ImageDraw.Draw(canvas).text(corner, character, font=font, fill=0)
    shift = (round(right * side), round(down * side))
    canvas = canvas.rotate(angle, Image.Resampling.BILINEAR, translate=shift, fillcolor=255)
    data = io.BytesIO()
    canvas.resize((size, size), Image.Resampling.BOX).save(data, "png")
    return data.getvalue()
