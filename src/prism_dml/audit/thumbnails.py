"""Small pictures of many samples, packed into sheets that a page cuts them from."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import Image, ImageOps

from prism_dml.data import ImageTable, read_image

COLUMNS = 8
"""Pictures in a row, and rows in a sheet."""
PER_SHEET = COLUMNS * COLUMNS
LARGEST = 128
"""Side of a picture in pixels; data whose images are all smaller get smaller ones."""
PROBED = 32
"""So many images, spread over the samples, tell how large they are."""
QUALITY = 82
"""Of WebP's lossy compression, 0 to 100."""


def cell_side(table: ImageTable, samples: Sequence[int]) -> int:
    """Side in pixels, at most 128, of the square that holds a picture of each sample."""
    probes = samples[:: max(1, len(samples) // PROBED)]
    images = (_readable(table, i) for i in probes)
    sides = [max(image.size) for image in images if isinstance(image, Image.Image)]
    return min(LARGEST, max(sides, default=1))


def draw_sheets(
    table: ImageTable, samples: Sequence[int], side: int
) -> Iterator[tuple[bytes, dict[int, str]]]:
    """Sheets of 8 x 8 pictures in the order of `samples`.

    Args:
        table: where the images are read from.
        samples: their numbers in the table.
        side: of a picture in pixels; the whole image is fitted in, on a transparent ground.

    Yields:
        A sheet as WebP, and why those of its images that cannot be read are left empty, by their place in `samples`.
    """
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(samples), PER_SHEET):
            part = samples[start : start + PER_SHEET]
            pictures = pool.map(lambda i: _fitted(table, i, side), part)
            rows = -(-len(part) // COLUMNS)
            sheet = Image.new("RGBA", (COLUMNS * side, rows * side))
            faults = {}
            for place, picture in enumerate(pictures):
                if isinstance(picture, str):
                    faults[start + place] = picture
                else:
                    left = place % COLUMNS * side + (side - picture.width) // 2
                    top = place // COLUMNS * side + (side - picture.height) // 2
                    sheet.paste(picture, (left, top))
            buffer = io.BytesIO()
            sheet.save(buffer, format="WEBP", quality=QUALITY, method=2)
            yield buffer.getvalue(), faults


def _fitted(table: ImageTable, i: int, side: int) -> Image.Image | str:
    image = _readable(table, i)
    if isinstance(image, str):
        return image
    longest, shortest = max(image.size), min(image.size)
    if longest > side * shortest:  # thinner than a pixel would be left of it
        image = ImageOps.fit(image, (side, 1) if image.width > image.height else (1, side))
    return ImageOps.contain(image, (side, side))


def _readable(table: ImageTable, i: int) -> Image.Image | str:
    """The image, or why there is none, which is no reason to have no page."""
    try:
        return read_image(table, i)
    except ValueError as error:
        return str(error)
