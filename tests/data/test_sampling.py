import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prism_dml.data.sampling import PKSampler

sizes_of_classes = st.lists(st.integers(1, 23), min_size=2, max_size=14)


def labels_of(sizes: list[int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)) * 3 + 5, sizes))


@settings(max_examples=300, deadline=None)
@given(sizes_of_classes, st.integers(2, 9), st.integers(1, 5), st.integers(0, 3))
def test_epoch_properties(sizes: list[int], p: int, k: int, epoch: int) -> None:
    labels = labels_of(sizes)
    sampler = PKSampler(labels, p, k, seed=1)
    batches = sampler.epoch(epoch)
    assert len(batches) == sampler.num_batches == len(sampler)
    assert set(np.concatenate(batches)) == set(range(len(labels))), "every sample at least once"
    assert all(len(b) == p * k for b in batches[:-1])
    assert 2 * k <= len(batches[-1]) <= p * k and len(batches[-1]) % k == 0
    counts = dict(zip(*np.unique(labels, return_counts=True), strict=True))
    for batch in batches:
        chunks = labels[batch].reshape(-1, k)
        assert (chunks == chunks[:, :1]).all(), "a chunk is of one class"
        assert len(np.unique(chunks[:, 0])) >= 2
        for samples, label in zip(batch.reshape(-1, k), chunks[:, 0], strict=True):
            assert len(set(samples)) == min(k, counts[label]), (
                "repeats only where the class is smaller than K"
            )


@settings(max_examples=300, deadline=None)
@given(sizes_of_classes, st.integers(2, 9), st.integers(1, 5))
def test_classes_of_a_batch_are_different_where_possible(sizes: list[int], p: int, k: int) -> None:
    labels = labels_of(sizes)
    batches = PKSampler(labels, p, k, seed=2).epoch(0)
    chunk_classes = [labels[batch].reshape(-1, k)[:, 0] for batch in batches]
    values, chunks = np.unique(np.concatenate(chunk_classes), return_counts=True)
    for classes in chunk_classes:
        for value, count in zip(*np.unique(classes, return_counts=True), strict=True):
            total = chunks[values == value][0]
            # The last batch is shorter, so the others may need one more of a class: len(batches) - 1 is the
            # even share.
            assert count <= -(-total // max(1, len(batches) - 1))


@settings(max_examples=200, deadline=None)
@given(sizes_of_classes, st.integers(2, 9), st.integers(1, 5))
def test_no_more_batches_than_needed(sizes: list[int], p: int, k: int) -> None:
    chunks = -(-np.array(sizes) // k)
    largest, others = chunks.max(), chunks.sum() - chunks.max()
    needed = chunks.sum() + max(0, -(-largest // (p - 1)) - others)
    assert PKSampler(labels_of(sizes), p, k).num_batches == -(-needed // p)


def test_balanced_classes_are_seen_once_and_full_batches_have_p_classes() -> None:
    labels = np.repeat(np.arange(12), 8)
    batches = PKSampler(labels, 4, 4, seed=0).epoch(0)
    assert [len(np.unique(labels[b])) for b in batches] == [4] * 6
    assert sorted(np.concatenate(batches)) == list(range(96))


def test_fewer_classes_than_p_keep_the_batch_size() -> None:
    labels = np.repeat(np.arange(3), 40)
    batches = PKSampler(labels, 8, 2, seed=0).epoch(0)
    assert [len(b) for b in batches] == [16] * 7 + [8]
    for batch in batches[:-1]:
        assert sorted(np.bincount(labels[batch]) // 2) in ([2, 3, 3], [2, 2, 4])


def test_singletons_fill_their_chunk_with_themselves() -> None:
    batches = PKSampler(np.arange(6), 3, 4, seed=0).epoch(0)
    assert [len(b) for b in batches] == [12, 12]
    assert all(np.bincount(b, minlength=6).max() == 4 for b in batches)


def test_one_class_that_outweighs_the_rest_never_fills_a_batch_alone() -> None:
    labels = np.array([0] * 1000 + [1] * 3)
    batches = PKSampler(labels, 4, 5, seed=0).epoch(0)
    assert all(len(np.unique(labels[b])) == 2 for b in batches)
    assert set(np.concatenate(batches)) == set(range(1003))


def test_a_single_chunk_left_is_topped_up_with_another_class() -> None:
    labels = np.repeat(np.arange(5), 2)  # 5 chunks of 2, batches of 2 chunks
    batches = PKSampler(labels, 2, 2, seed=0).epoch(0)
    assert [len(b) for b in batches] == [4, 4, 4]
    assert all(len(np.unique(labels[b])) == 2 for b in batches)


def test_deterministic_in_seed_and_epoch() -> None:
    labels = labels_of([9, 4, 1, 17, 6, 6])
    sampler = PKSampler(labels, 3, 4, seed=7)
    late = np.concatenate(sampler.epoch(5))
    again = PKSampler(labels, 3, 4, seed=7)
    assert np.array_equal(np.concatenate(again.epoch(5)), late), "an epoch does not depend on those before"
    assert not np.array_equal(np.concatenate(sampler.epoch(6)), late)
    assert not np.array_equal(np.concatenate(PKSampler(labels, 3, 4, seed=8).epoch(5)), late)


def test_class_mates_and_batch_mates_change_between_epochs() -> None:
    labels = np.repeat(np.arange(40), 8)
    sampler = PKSampler(labels, 8, 4, seed=0)

    def pairs(epoch: int) -> set[tuple[int, int]]:
        return {
            (int(c[0]), int(c[i])) for b in sampler.epoch(epoch) for c in b.reshape(-1, 4) for i in (1, 2, 3)
        }

    assert len(pairs(0) & pairs(1)) < 0.4 * len(pairs(0))
    together = np.zeros((40, 40), int)
    for epoch in range(20):
        for batch in sampler.epoch(epoch):
            present = np.unique(labels[batch])
            together[np.ix_(present, present)] += 1
    # Two classes meet 20 * 10 * 8 * 7 / (40 * 39) = 7.2 times in 20 epochs of 10 batches of 8.
    off_diagonal = together[~np.eye(40, dtype=bool)]
    assert off_diagonal.min() >= 1 and off_diagonal.mean() == pytest.approx(20 * 10 * 8 * 7 / (40 * 39))


def test_a_million_samples_take_seconds() -> None:
    labels = np.random.default_rng(0).integers(0, 100_000, 1_000_000)
    start = time.perf_counter()
    batches = PKSampler(labels, 16, 4, seed=0).epoch(0)
    assert time.perf_counter() - start < 5
    assert min(len(np.unique(labels[b])) for b in batches[:200]) == 16


@pytest.mark.parametrize(
    ("labels", "p", "k", "seed", "message"),
    [
        ([3, 3, 3], 2, 2, 0, "two classes"),
        ([], 2, 2, 0, "two classes"),
        ([0, 1], 1, 2, 0, "classes_per_batch"),
        ([0, 1], 2, 0, 0, "samples_per_class"),
        ([0, 1], 2, 2, -1, "seed"),
        ([0.5, 1.0], 2, 2, 0, "integers"),
        ([[0, 1]], 2, 2, 0, "one row"),
    ],
)
def test_errors(labels: list[int], p: int, k: int, seed: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PKSampler(np.array(labels), p, k, seed)


@settings(max_examples=200, deadline=None)
@given(sizes_of_classes, st.integers(2, 9), st.integers(1, 5), st.integers(0, 3), st.integers(1, 9))
def test_blocks_keep_what_an_epoch_promises(
    sizes: list[int], p: int, k: int, epoch: int, num_blocks: int
) -> None:
    labels = labels_of(sizes)
    blocks = np.random.default_rng(3).integers(0, num_blocks, len(labels))
    batches = PKSampler(labels, p, k, seed=1, blocks=blocks).epoch(epoch)
    plain = PKSampler(labels, p, k, seed=1).epoch(epoch)
    assert [len(batch) for batch in batches] == [len(batch) for batch in plain]
    assert set(np.concatenate(batches)) == set(range(len(labels)))
    chunks = [labels[batch].reshape(-1, k) for batch in batches]
    assert all((chunk == chunk[:, :1]).all() and len(np.unique(chunk)) >= 2 for chunk in chunks)
    values, totals = np.unique(np.concatenate(chunks)[:, 0], return_counts=True)
    for chunk in chunks:
        for value, count in zip(*np.unique(chunk[:, 0], return_counts=True), strict=True):
            assert count <= -(-totals[values == value][0] // max(1, len(batches) - 1))


def blocks_read(batches: list[np.ndarray], blocks: np.ndarray, held: int) -> int:
    """How often a block is read if the last `held` ones stay in memory."""
    memory: dict[int, None] = {}
    reads = 0
    for block in blocks[np.concatenate(batches)].tolist():
        reads += block not in memory
        memory.pop(block, None)
        memory[block] = None
        if len(memory) > held:
            del memory[next(iter(memory))]
    return reads


@pytest.mark.parametrize("by_class", [False, True])
def test_blocks_are_read_about_once_with_a_quarter_of_them_in_memory(by_class: bool) -> None:
    labels = np.repeat(np.arange(20), 200)
    if not by_class:
        labels = np.random.default_rng(0).permutation(labels)
    blocks = np.arange(len(labels)) // 20  # 200 blocks
    swept = PKSampler(labels, 8, 4, blocks=blocks)
    assert blocks_read(swept.epoch(0), blocks, 50) < 1.3 * 200
    assert blocks_read(PKSampler(labels, 8, 4).epoch(0), blocks, 50) > 8 * 200
    orders = [blocks[np.concatenate(swept.epoch(epoch))] for epoch in (0, 1)]
    assert (orders[0] != orders[1]).mean() > 0.9


@settings(max_examples=200, deadline=None)
@given(sizes_of_classes, st.integers(2, 9), st.integers(1, 5), st.integers(0, 3), st.integers(0, 4))
def test_weights_of_one_change_nothing_and_of_zero_are_never_drawn(
    sizes: list[int], p: int, k: int, epoch: int, num_blocks: int
) -> None:
    labels, rng = labels_of(sizes), np.random.default_rng(5)
    blocks = rng.integers(0, num_blocks, len(labels)) if num_blocks else None
    sampler = PKSampler(labels, p, k, seed=1, blocks=blocks)
    plain = sampler.epoch(epoch)
    for before, same in zip(plain, sampler.weighted(np.ones(len(labels))).epoch(epoch), strict=True):
        np.testing.assert_array_equal(before, same)
    weights = rng.random(len(labels)) * (rng.random(len(labels)) < 0.5)
    blocks = np.zeros(len(labels), int) if blocks is None else blocks
    drawn = sampler.weighted(weights).epoch(epoch)
    for before, after in zip(plain, drawn, strict=True):
        np.testing.assert_array_equal(blocks[before], blocks[after])
        empty = np.bincount(blocks, weights)[blocks[after]] == 0
        assert (weights[after[~empty]] > 0).all()
        np.testing.assert_array_equal(before[empty], after[empty])
    for before, again in zip(plain, sampler.epoch(epoch), strict=True):
        np.testing.assert_array_equal(before, again)


def test_samples_are_drawn_in_proportion_to_their_weights() -> None:
    labels = np.repeat(np.arange(10), 20)
    weights = np.random.default_rng(1).random(200)
    sampler = PKSampler(labels, 4, 5, seed=3).weighted(weights)
    counts = np.bincount(
        np.concatenate([np.concatenate(sampler.epoch(e)) for e in range(400)]), minlength=200
    )
    expected = counts.sum() * weights / weights.sum()
    assert (np.abs(counts - expected) < 6 * np.sqrt(expected) + 3).all()


@pytest.mark.parametrize(
    "weights", [[1.0, 1.0], [1.0, 1.0, 1.0, -0.1], [1.0, 1.0, 1.0, float("nan")], [2.0] * 4]
)
def test_weights_that_are_none(weights: list[float]) -> None:
    with pytest.raises(ValueError, match=r"weights must be 4 numbers in \[0, 1\], one for each sample"):
        PKSampler([0, 0, 1, 1], 2, 2).weighted(weights)
