import io

import numpy as np
from PIL import Image

from prism_dml.audit.thumbnails import cell_side, draw_sheets
from prism_dml.data import BytesImages, ImageTable


def table(*images):
    data = []
    for image in images:
        stream = io.BytesIO()
        if image is not None:
            image.save(stream, "PNG")
        data.append(stream.getvalue())
    return ImageTable.from_names(BytesImages(data), [f"{i}" for i in range(len(data))], ["a"] * len(data))


def test_pictures_lie_in_their_places():
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
    images = table(*(Image.new("RGB", (40, 20), colour) for colour in colours))
    samples = [i % 3 for i in range(70)]
    sheets = [Image.open(io.BytesIO(sheet)).convert("RGBA") for sheet, _ in draw_sheets(images, samples, 40)]
    assert [sheet.size for sheet in sheets] == [(320, 320), (320, 40)]
    for place, sample in enumerate(samples):
        sheet, inside = sheets[place // 64], place % 64
        left, top = inside % 8 * 40, inside // 8 * 40
        pixel = np.array(sheet.getpixel((left + 20, top + 20))[:3], dtype=int)
        assert abs(pixel - colours[sample]).max() < 40
        assert sheet.getpixel((left + 20, top + 4))[3] == 0  # above a wide image it is transparent
    assert sheets[1].getpixel((6 * 40 + 20, 20))[3] == 0  # no picture there


def test_unreadable_and_extreme_images():
    images = table(None, Image.new("RGB", (3000, 2)), Image.new("RGB", (1, 900)))
    assert cell_side(images, [0, 1, 2]) == 128
    assert cell_side(images, [0]) == 1
    (drawn,) = draw_sheets(images, [0, 1, 2], 64)
    assert Image.open(io.BytesIO(drawn[0])).size == (512, 64)


def test_what_cannot_be_read_is_told_by_its_place():
    images = table(Image.new("RGB", (4, 4)), None)
    faults = [faults for _, faults in draw_sheets(images, [1, *[0] * 63, 0, 1], 4)]
    assert faults == [{0: "'1': unreadable image: no bytes"}, {65: "'1': unreadable image: no bytes"}]
