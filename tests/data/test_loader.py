import io
import itertools
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prism_dml.data import loader as module
from prism_dml.data.augment import Augment, AugmentKind
from prism_dml.data.loader import (
    Batch,
    CachedBatches,
    ImageBatches,
    StreamingBatches,
    images_at_once,
    open_images,
)
from prism_dml.data.sampling import PKSampler, Share
from prism_dml.data.table import BytesImages, ImageTable

# Newer Pythons warn of any fork in a process that has threads; torch's data loader forks by default.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def png(i: int, height: int = 20, width: int = 28) -> bytes:
    pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def make_table(per_class: int = 6, classes: int = 4, broken: tuple[int, ...] = ()) -> ImageTable:
    count = per_class * classes
    data = [b"broken" if i in broken else png(i) for i in range(count)]
    labels = np.arange(count, dtype=np.int64) % classes
    return ImageTable(BytesImages(data), [f"{i}.png" for i in range(count)], labels, list("abcd")[:classes])


def take(batches: ImageBatches, steps: int, start: int = 0, seed: int = 5) -> list[Batch]:
    sampler = PKSampler(batches.table.labels, 2, 3, seed=1)
    return list(itertools.islice(batches.train(sampler, seed, start), steps))


def assert_same(some: list[Batch], others: list[Batch]) -> None:
    assert len(some) == len(others)
    for a, b in zip(some, others, strict=True):
        assert torch.equal(a.index, b.index) and torch.equal(a.labels, b.labels)
        assert torch.equal(a.images, b.images)


def make(cache: module.CacheKind, kind: AugmentKind, workers: int = 0, **options: object) -> ImageBatches:
    return open_images(make_table(), 16, Augment(kind), workers, cache=cache, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("cache", ["memory", "stream"])
@pytest.mark.parametrize("kind", ["photo", "drawing", "none"])
def test_training_batches(cache: module.CacheKind, kind: AugmentKind) -> None:
    batches = make(cache, kind)
    table = make_table()
    state = torch.get_rng_state()
    steps = take(batches, 9)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is as it was"
    for batch in steps:
        assert batch.images.shape == (6, 3, 16, 16) and batch.images.dtype == torch.float32
        assert batch.labels.dtype == batch.index.dtype == torch.int64
        assert np.array_equal(batch.labels.numpy(), table.labels[batch.index.numpy()])
    sampler = PKSampler(table.labels, 2, 3, seed=1)
    order = [*sampler.epoch(0), *sampler.epoch(1), *sampler.epoch(2)][:9]
    assert all(np.array_equal(b.index.numpy(), i) for b, i in zip(steps, order, strict=True))
    assert_same(take(batches, 9), steps)
    assert_same(take(batches, 3, start=6), steps[6:])
    assert torch.equal(take(batches, 1, seed=6)[0].images, steps[0].images) == (kind == "none")
    if kind != "none":
        first = take(batches, 1)[0].images
        later = take(batches, 1, start=4)[0].images
        assert not torch.equal(first, later)


@pytest.mark.parametrize("kind", ["photo", "crop", "drawing"])
def test_workers_change_nothing(kind: AugmentKind) -> None:
    broken = make_table(broken=(3, 7))
    alone, helped = (StreamingBatches(broken, 16, Augment(kind), 16, n, max_unreadable=0.5) for n in (0, 2))
    assert_same(take(helped, 6), take(alone, 6))
    assert_same(take(helped, 2, start=4), take(alone, 6)[4:])
    assert_same(list(helped.evaluate(5)), list(alone.evaluate(5)))


@pytest.mark.parametrize("kind", ["photo", "drawing", "none"])
def test_streamed_equals_cached(kind: AugmentKind) -> None:
    """To the last bit: whether a machine's memory suffices must not change what is trained."""
    assert_same(take(make("stream", kind), 5), take(make("memory", kind), 5))


@pytest.mark.parametrize("cache", ["memory", "stream"])
def test_evaluation_is_in_order_and_only_normalised(cache: module.CacheKind) -> None:
    batches = make(cache, "photo")
    seen = list(batches.evaluate(batch_size=7))
    assert [len(b.index) for b in seen] == [7, 7, 7, 3]
    assert torch.cat([b.index for b in seen]).tolist() == list(range(24))
    assert torch.cat([b.labels for b in seen]).tolist() == make_table().labels.tolist()
    images = torch.cat([b.images for b in seen])
    decoded = module.load_images(make_table(), 16)[0]
    torch.testing.assert_close(images, (decoded.float() / 255 - 0.5) / 0.25)


def test_streamed_evaluation_cuts_the_centre_of_a_larger_image() -> None:
    streamed = open_images(make_table(), 12, Augment("photo"), resize_size=16)
    assert isinstance(streamed, StreamingBatches)
    whole = torch.cat([b.images for b in make("memory", "none").evaluate()])
    (batch,) = streamed.evaluate()
    assert torch.equal(batch.images, whole[:, :, 2:14, 2:14])
    with pytest.raises(ValueError, match="needs a stream"):
        open_images(make_table(), 12, Augment("photo"), resize_size=16, cache="memory")


def test_crops_are_cut_from_the_whole_image() -> None:
    gradient = np.broadcast_to(
        np.linspace(0, 255, 200, dtype=np.uint8), (100, 200)
    )  # left dark, right bright
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(gradient)).save(file, "png")
    table = make_table()
    table = ImageTable(BytesImages([file.getvalue()] * 24), table.paths, table.labels, table.classes)
    batches = open_images(table, 16, Augment("crop"))
    assert isinstance(batches, StreamingBatches)
    images = torch.cat([b.images for b in take(batches, 12)])[:, 0] * 0.25 + 0.5  # (72, 16, 16)
    assert images.min() < 0.15 and images.max() > 0.85, "a centre crop would end at 0.25 and 0.75"
    falls = images[:, 8, 0] > images[:, 8, -1]
    assert 0.3 < falls.float().mean() < 0.7, "half are flipped"
    whole = torch.cat([b.images for b in batches.evaluate()])
    assert torch.equal(whole[0], whole[1]), "not in evaluation"
    with pytest.raises(ValueError, match="crops of whole images need a stream"):
        open_images(table, 16, Augment("crop"), cache="memory")


@pytest.mark.parametrize("cache", ["memory", "stream"])
def test_select_renumbers_samples(cache: module.CacheKind) -> None:
    whole = torch.cat([b.images for b in make(cache, "none").evaluate()])
    some = make(cache, "none").select(np.array([20, 3, 9]))
    (batch,) = some.evaluate()
    assert torch.equal(batch.images, whole[[20, 3, 9]]) and batch.index.tolist() == [0, 1, 2]
    assert some.table.paths == ["20.png", "3.png", "9.png"]
    mask = make_table().labels == 1
    (batch,) = make(cache, "none").select(mask).select([2, 0]).evaluate()
    assert torch.equal(batch.images, whole[np.flatnonzero(mask)[[2, 0]]])


def test_cached_table_has_the_readable_samples() -> None:
    batches = open_images(make_table(broken=(3, 7)), 16, Augment("none"), cache="memory", max_unreadable=0.2)
    kept = [i for i in range(24) if i not in (3, 7)]
    assert batches.table.paths == [f"{i}.png" for i in kept]
    whole = torch.cat([b.images for b in make("memory", "none").evaluate()])
    assert torch.equal(torch.cat([b.images for b in batches.evaluate()]), whole[kept])


def test_streaming_puts_another_of_the_class_in_an_unreadable_images_place(
    caplog: pytest.LogCaptureFixture,
) -> None:
    table = make_table(broken=(3, 7))
    batches = StreamingBatches(table, 16, Augment("none"), 16, max_unreadable=0.2)
    with caplog.at_level(logging.WARNING, "prism_dml"):
        steps = take(batches, 12)
        assert sorted(r.message.split(":")[0] for r in caplog.records) == [
            "skipped '3.png'",
            "skipped '7.png'",
        ]
        assert len(list(batches.select(np.arange(4, 12)).evaluate())) == 1 and len(take(batches, 4)) == 4
    assert len(caplog.records) == 2, "each is named once"
    sampler = PKSampler(table.labels, 2, 3, seed=1)
    order = itertools.chain.from_iterable(sampler.epoch(e) for e in range(3))
    replaced = 0
    for batch, wanted in zip(steps, order, strict=False):
        assert len(batch.index) == 6
        assert np.array_equal(batch.labels.numpy(), table.labels[wanted])
        assert not set(batch.index.tolist()) & {3, 7}
        changed = batch.index.numpy() != wanted
        assert set(wanted[changed].tolist()) <= {3, 7}
        replaced += int(changed.sum())
    assert replaced >= 4
    evaluated = torch.cat([b.index for b in batches.evaluate(10)])
    assert evaluated.tolist() == [i for i in range(24) if i not in (3, 7)]


@pytest.mark.parametrize("of", [2, 4, 7])
@pytest.mark.parametrize(
    ("cache", "kind"),
    [("memory", "photo"), ("stream", "photo"), ("stream", "crop"), ("stream", "drawing"), ("stream", "none")],
)
def test_the_shares_of_a_batch_are_the_batch(cache, kind, of: int) -> None:
    """Unreadable images with them, batches that cannot be shared evenly, and processes with nothing to do."""
    table = make_table(broken=() if cache == "memory" else tuple(range(0, 24, 4)))
    batches = open_images(table, 16, Augment(kind), cache=cache, max_unreadable=0.3)
    sampler = PKSampler(table.labels, 2, 3, seed=1)

    def start(share: Share = module.WHOLE):
        return batches.train(sampler, 5, start_step=2, share=share)

    everyone = [start(Share(rank, of)) for rank in range(of)]
    for whole in itertools.islice(start(), 6):
        parts = [next(own) for own in everyone]
        assert torch.equal(torch.cat([part.index for part in parts]), whole.index)
        assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
        torch.testing.assert_close(torch.cat([part.images for part in parts]), whole.images)
    numbers = [torch.cat([b.index for b in batches.evaluate(2, Share(rank, of))]) for rank in range(of)]
    assert torch.equal(torch.cat(numbers).sort().values, torch.cat([b.index for b in batches.evaluate(2)]))


def test_a_class_without_a_readable_image_leaves_its_places_empty() -> None:
    table = make_table(broken=tuple(range(0, 24, 4)))  # all of class 0
    for batch in take(StreamingBatches(table, 16, Augment("photo"), 16, max_unreadable=0.3), 8):
        assert len(batch.index) in (3, 6) and not (batch.labels == 0).any()


def test_too_many_unreadable_images_fail() -> None:
    batches = StreamingBatches(make_table(broken=(3, 7)), 16, Augment("none"), 16, max_unreadable=0.05)
    with pytest.raises(
        ValueError, match="2 of 24 images are unreadable, more than the share of 0.05"
    ) as error:
        list(batches.evaluate(10))
    assert "a higher max_unreadable puts up with more" in str(error.value)
    with pytest.raises(ValueError, match="are unreadable"):
        take(batches, 12)
    with pytest.raises(ValueError, match="unreadable"):
        open_images(make_table(broken=(3, 7)), 16, Augment("none"), cache="memory", max_unreadable=0.05)
    everything = StreamingBatches(
        make_table(broken=tuple(range(24))), 16, Augment("none"), 16, max_unreadable=1.0
    )
    with pytest.raises(ValueError, match="none of the 24 images is readable"):
        list(everything.evaluate())
    with pytest.raises(ValueError, match="none of the 24 images is readable"):
        take(everything, 99)


def test_the_share_of_unreadable_images_is_of_all_however_they_are_gone_through(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """12 of 1,500, all in the second class, in the order of the table, at random and of that class alone."""
    labels = np.repeat(np.arange(15), 100)
    data = [b"broken" if 100 <= i < 112 else png(0, 8, 8) for i in range(1500)]
    table = ImageTable(BytesImages(data), [f"{i}.png" for i in range(1500)], labels, list("abcdefghijklmno"))
    batches = open_images(table, 8, Augment("none"), cache="stream")
    with caplog.at_level(logging.WARNING, "prism_dml"):
        assert sum(len(batch.index) for batch in batches.evaluate(10)) == 1488
        assert len(take(batches, 60)) == 60
        assert sum(len(batch.index) for batch in batches.select(labels == 1).evaluate(10)) == 88
    assert len(caplog.records) == 11 and "skipped 12 unreadable images in all" in caplog.messages[10]
    many = open_images(table, 8, Augment("none"), cache="stream", max_unreadable=0.007)
    with pytest.raises(ValueError, match="11 of 1500 images are unreadable, more than the share of 0.007"):
        list(many.evaluate(1))
    with pytest.raises(ValueError, match="none of the 12 images is readable"):
        list(batches.select(np.arange(100, 112)).evaluate())


def test_automatic_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    table = make_table()
    assert isinstance(open_images(table, 16, Augment("none")), CachedBatches)
    assert isinstance(open_images(table, 160, Augment("none")), StreamingBatches)
    monkeypatch.setattr(module, "fits_in_memory", lambda *_: False)
    assert isinstance(open_images(table, 16, Augment("none")), StreamingBatches)


def test_grey_images_stay_one_channel_in_the_cache(tmp_path: Path) -> None:
    file = tmp_path / "grey.png"
    Image.new("L", (20, 20), 77).save(file)
    table = make_table()
    table = ImageTable(BytesImages([file.read_bytes()] * 24), table.paths, table.labels, table.classes)
    batches = open_images(table, 16, Augment("drawing"), cache="memory")
    assert isinstance(batches, CachedBatches) and batches.images.shape == (24, 1, 16, 16)
    assert take(batches, 1)[0].images.shape == (6, 3, 16, 16)


def test_streaming_batches_can_be_pickled_for_workers() -> None:
    batches = StreamingBatches(make_table(), 16, Augment("photo"), 16)
    assert_same(take(pickle.loads(pickle.dumps(batches)), 2), take(batches, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache": "disk"}, "unknown cache 'disk'"),
        ({"cache": "stream", "workers": -1}, "workers"),
        ({"cache": "stream", "max_unreadable": 1.5}, "max_unreadable"),
        ({"cache": "stream", "size": 0}, "size"),
        ({"cache": "stream", "resize_size": 8}, "resize_size"),
    ],
)
def test_errors(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_images(**{"table": make_table(), "size": 16, "augment": Augment("none"), **options})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no images"):
        open_images(make_table(0), 16, Augment("none"), cache="stream")
    with pytest.raises(ValueError, match="batch size"):
        list(make("memory", "none").evaluate(0))


@pytest.mark.parametrize(
    "size, device, expected", [(224, "cpu", 8), (64, "cpu", 32), (16, "cpu", 256), (224, "cuda", 256)]
)
def test_images_embedded_at_once_fit_into_a_cpus_cache(size, device, expected) -> None:
    assert images_at_once(size, device) == expected


@pytest.mark.parametrize("cache", ["memory", "stream"])
def test_by_default_so_many_are_evaluated_at_once(cache) -> None:
    batches = open_images(make_table(per_class=5), 224, Augment("none"), cache=cache)
    sizes = [len(batch.index) for batch in batches.evaluate()]
    assert sizes == [8, 8, 4]
    assert [len(batch.index) for batch in batches.evaluate(15)] == [15, 5]
    with pytest.raises(ValueError, match="batch size"):
        list(batches.evaluate(0))
