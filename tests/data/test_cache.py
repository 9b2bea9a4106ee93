import io
import logging

import numpy as np
import pytest
import torch
from PIL import Image

import prism_dml.data.cache as cache
from prism_dml.data.cache import fits_in_memory, load_images
from prism_dml.data.decode import square
from prism_dml.data.table import BytesImages, ImageTable


def encode(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def grey(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30), dtype=np.uint8))


def colour(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (30, 20, 3), dtype=np.uint8))


def table_of(data: list[bytes]) -> ImageTable:
    paths = [f"{i}.png" for i in range(len(data))]
    return ImageTable(BytesImages(data), paths, np.zeros(len(data), dtype=np.int64), ["a"])


def expected(image: Image.Image, size: int) -> torch.Tensor:
    return torch.from_numpy(np.asarray(square(image.convert("RGB"), size)).transpose(2, 0, 1).copy())


def test_grey_images_take_one_channel() -> None:
    images, readable = load_images(table_of([encode(grey(i)) for i in range(5)]), 8)
    assert images.shape == (5, 1, 8, 8) and images.dtype == torch.uint8
    assert readable.tolist() == list(range(5))
    for i in range(5):
        assert torch.equal(images[i], expected(grey(i), 8)[:1])


@pytest.mark.parametrize("first_coloured", [0, 1, 6, 7])
def test_one_coloured_image_makes_all_have_three(
    first_coloured: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "CHUNK", 3)  # more than one round through the pool
    pictures = [grey(i) for i in range(8)]
    pictures[first_coloured] = colour(first_coloured)
    images, _ = load_images(table_of([encode(picture) for picture in pictures]), 9)
    assert images.shape == (8, 3, 9, 9)
    for i, picture in enumerate(pictures):
        assert torch.equal(images[i], expected(picture, 9))


def test_unreadable_images_are_named_skipped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    data = [encode(grey(i)) if i % 2 else b"no image" for i in range(30)]
    with caplog.at_level(logging.WARNING, "prism_dml"):
        images, readable = load_images(table_of(data), 4, max_unreadable=0.5)
    assert readable.tolist() == list(range(1, 30, 2))
    assert len(images) == 15
    for row, i in enumerate(readable):
        assert torch.equal(images[row], expected(grey(i), 4)[:1])
    assert len(caplog.messages) == 11
    assert caplog.messages[0] == "skipped '0.png': unreadable image: not a known image format"
    assert caplog.messages[10] == "skipped 15 unreadable images in all"


def test_too_many_unreadable_images() -> None:
    data = [encode(grey(0))] * 98 + [b"no image"] * 2
    assert len(load_images(table_of(data), 4, max_unreadable=0.02)[0]) == 98
    with pytest.raises(
        ValueError, match=r"2 of 100 images are unreadable, more than the share of 0\.01"
    ) as error:
        load_images(table_of(data), 4)
    assert "a higher max_unreadable puts up with more" in str(error.value)


def test_all_unreadable_images_are_named_before_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    data = [encode(grey(0))] * 20 + [b"no image", b""] * 3
    with caplog.at_level(logging.WARNING, "prism_dml"), pytest.raises(ValueError, match="6 of 26 images"):
        load_images(table_of(data), 4)
    assert [message.split(":")[0] for message in caplog.messages] == [
        f"skipped '{i}.png'" for i in range(20, 26)
    ]


def test_nothing_readable_is_an_error_however_much_is_put_up_with() -> None:
    with pytest.raises(ValueError, match="none of the 2 images is readable; the last one: '1.png'"):
        load_images(table_of([b"", b""]), 4, max_unreadable=1)


@pytest.mark.parametrize(("size", "share"), [(0, 0.01), (8, -0.1), (8, 1.1), (8, float("nan"))])
def test_bad_arguments(size: int, share: float) -> None:
    with pytest.raises(ValueError):
        load_images(table_of([encode(grey(0))]), size, share)


def test_empty_table() -> None:
    with pytest.raises(ValueError, match="no images"):
        load_images(table_of([]), 8)


def test_progress_ends_at_the_total(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "CHUNK", 2)
    seen: list[tuple[int, int]] = []
    load_images(table_of([encode(grey(i)) for i in range(5)]), 4, progress=lambda *state: seen.append(state))
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_fits_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of([b""] * 100)
    assert fits_in_memory(table, 32)
    assert not fits_in_memory(table, 10**7)
    monkeypatch.setattr(cache, "_memory_bytes", lambda: 2 * 100 * 3 * 32 * 32)
    assert fits_in_memory(table, 32)
    assert not fits_in_memory(table, 33)
    assert not fits_in_memory(table, 32, copies=2)
