import io
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from prism_dml.data.decode import MAX_ASPECT, decode_image, read_image, square
from prism_dml.data.table import BytesImages, FileImages, ImageTable

RAMP = np.linspace(0, 255, 20 * 30).reshape(20, 30).astype(np.uint8)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def decoded(data: bytes) -> np.ndarray:
    image = decode_image(data)
    assert image.mode == "RGB"
    return np.asarray(image)


def photo(width: int = 30, height: int = 20) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def test_rgb_is_left_alone() -> None:
    np.testing.assert_array_equal(decoded(encode(photo())), np.asarray(photo()))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    data = encode(Image.fromarray(RAMP.astype(np.uint16) * 257), kind)
    np.testing.assert_array_equal(decoded(data), np.repeat(RAMP[..., None], 3, axis=2))


def test_16_bit_colour_png() -> None:
    # Pillow writes none: eight red pixels of 16 bits, put together by hand.
    def chunk(name: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")

    row = b"\0" + b"\xff\xff\0\0\0\0" * 8
    size = (8).to_bytes(4, "big") + (1).to_bytes(4, "big")
    header = chunk(b"IHDR", size + bytes([16, 2, 0, 0, 0]))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    assert decoded(data).tolist() == [[[255, 0, 0]] * 8]


def test_grey_and_one_bit() -> None:
    np.testing.assert_array_equal(decoded(encode(Image.fromarray(RAMP)))[..., 1], RAMP)
    bits = Image.fromarray(RAMP > 127)
    np.testing.assert_array_equal(decoded(encode(bits))[..., 2], np.where(RAMP > 127, 255, 0))


def test_cmyk_jpeg() -> None:
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    red, green, blue = decoded(encode(cyan, "JPEG"))[8, 8].astype(int)
    assert red < 10 and green > 245 and blue > 245


def test_transparency_lies_over_white() -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (255, 0, 0, 255))
    assert decoded(encode(image)).tolist() == [[[255, 255, 255], [255, 0, 0]]]
    grey = Image.new("LA", (1, 1), (0, 0))
    assert decoded(encode(grey)).tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize("transparency", [0, b"\x00\xff"])
def test_palette_with_transparency(transparency: int | bytes) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert decoded(encode(image, transparency=transparency)).tolist() == [[[255, 255, 255], [40, 50, 60]]]
    assert decoded(encode(image)).tolist() == [[[10, 20, 30], [40, 50, 60]]]


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side: turn a quarter clockwise
    data = encode(photo(), "PNG", exif=exif)
    np.testing.assert_array_equal(decoded(data), np.rot90(np.asarray(photo()), -1))


def exif(*tags: bytes) -> bytes:
    """An EXIF block of tags of 12 bytes, put together by hand: Pillow writes none that are damaged."""
    return b"Exif\0\0II*\0\x08\0\0\0" + len(tags).to_bytes(2, "little") + b"".join(tags) + b"\0" * 4


ON_ITS_SIDE = b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"


@pytest.mark.parametrize("tag", [b"\0\x01", b"\x1a\x01", b"\x69\x87", b"\x25\x88"])
def test_damage_to_other_exif_tags_does_no_harm(tag: bytes) -> None:
    """Width, resolution, EXIF and GPS as text."""
    stray = tag + b"\x02\0\x04\0\0\0abc\0"
    for block in (exif(stray, ON_ITS_SIDE), exif(ON_ITS_SIDE, stray)):
        assert decode_image(encode(photo(30, 20), "JPEG", exif=block)).size == (20, 30)


def test_exif_that_cannot_be_parsed_is_left_alone() -> None:
    text = b"\x12\x01\x02\0\x02\0\0\x006\0\0\0"
    for block in (b"Exif\0\0garbage and more of it", b"Exif\0\0", exif(text)):
        assert decode_image(encode(photo(30, 20), "JPEG", exif=block)).size == (30, 20)


def test_what_pillow_finds_odd_about_a_readable_image_is_not_said() -> None:
    """Damaged EXIF, and half of the pixels at which Pillow refuses; in a process of its own: pytest has its filters."""
    code = """
import io
from PIL import Image
from prism_dml.data import decode_image
file = io.BytesIO()
Image.new("RGB", (15, 10)).save(file, "jpeg", exif=b"Exif\\0\\0II*\\0\\x08\\0\\0\\0\\x05\\0\\x12\\x01")
Image.MAX_IMAGE_PIXELS = 100
print(decode_image(file.getvalue()).size)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("(15, 10)", "")


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    assert decoded(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))[0, 0].tolist() == [
        255,
        0,
        0,
    ]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no bytes"),
        (b"<html>Not found</html>", "not a known image format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not a known image format"),
        (encode(photo(200, 200), "JPEG")[:3000], "truncated"),
        (encode(photo(200, 200), "PNG")[:3000], "truncated|Truncated"),
        (encode(Image.new("F", (2, 2)), "TIFF"), "floating-point"),
        (encode(Image.fromarray(np.full((2, 2), 70_000, dtype=np.int32)), "TIFF"), "32-bit"),
    ],
)
def test_unreadable(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=f"unreadable image: .*({reason})") as caught:
        decode_image(data)
    assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "BMP"]), st.integers(0, 400), st.binary(min_size=1, max_size=6))
def test_damage_never_raises_anything_but_value_error(kind: str, place: int, damage: bytes) -> None:
    data = encode(photo(), kind)
    place %= len(data)
    try:
        image = decode_image(data[:place] + damage + data[place + len(damage) :])
    except ValueError:
        return
    assert image.mode == "RGB"


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40))
def test_square_is_torchvisions_resize_and_centre_crop(width: int, height: int, size: int) -> None:
    image = photo(width, height)
    cut = square(image, size)
    assert cut.size == (size, size)
    longest = MAX_ASPECT * min(width, height)
    within = v2.CenterCrop((min(height, longest), min(width, longest)))
    expected = v2.Compose([within, v2.Resize(size), v2.CenterCrop(size)])(image)
    np.testing.assert_array_equal(np.asarray(cut), np.asarray(expected))


def test_square_of_a_hair_takes_little_memory() -> None:
    hair = Image.new("RGB", (1, 60_000), "blue")  # resized as a whole: 224 x 13 million pixels
    assert np.asarray(square(hair, 224)).mean(axis=(0, 1)).tolist() == [0, 0, 255]


def test_read_image_names_what_it_cannot_read(tmp_path: Path) -> None:
    paths = ["no such.png", "bad ü.png"]
    (tmp_path / "bad ü.png").write_bytes(b"text")
    table = ImageTable(FileImages(tmp_path, paths), paths, np.array([0, 0]), ["a"])
    with pytest.raises(ValueError, match=r"^'no such.png': No such file or directory$"):
        read_image(table, 0)
    with pytest.raises(ValueError, match=r"^'bad ü.png': unreadable image: not a known image format$"):
        read_image(table, 1)
    drawn = ImageTable(BytesImages([encode(photo())]), ["x"], np.array([0]), ["a"])
    assert read_image(drawn, 0).size == (30, 20)
