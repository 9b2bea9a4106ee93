"""Class-balanced batches: P classes x K samples, every sample at least once in an epoch, or by weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Indices = NDArray[np.int64]

_PROPOSALS = 16  # for each place in a batch whose sample is passed over


@dataclass(frozen=True)
class Share:
    """The part of each batch that is one process's own, of several that train together.

    Args:
        rank: number of the process, from 0.
        of: number of processes, at least 1.
    """

    rank: int = 0
    of: int = 1

    def largest(self, total: int) -> int:
        """Samples in the largest part of a batch of `total`."""
        return -(-total // self.of)

    def places(self, total: int) -> range:
        """Where in a batch of `total` this part is; the last parts may be shorter than the others, or empty."""
        size = self.largest(total)
        return range(min(self.rank * size, total), min((self.rank + 1) * size, total))


WHOLE = Share()
"""Where one process trains alone."""


class PKSampler:
    """Batches of P classes x K samples, each epoch a pure function of (seed, epoch).

    Every class's shuffled samples are cut into chunks of K; the last chunk is topped up with other samples of
    the class, so a sample repeats inside a chunk only where its class is smaller than K. Chunks are dealt so
    that a batch holds as many different classes as possible (with fewer classes than P, several chunks of one
    class), and always at least two: where one class outweighs all others more than (P - 1) to 1, or a single
    chunk would be left for the last batch, the other classes get extra chunks. All batches have P * K samples
    but the last, which has what is left (at least 2 * K).

    Args:
        labels: (N,) integers, any values; at least two different ones.
        classes_per_batch: P >= 2.
        samples_per_class: K >= 1.
        seed: non-negative integer.
        blocks: (N,) number of the block of storage of each sample, such as a row group of parquet. Then an epoch goes
            through the blocks in random order, all classes at the same time: a class's samples are shuffled within a
            block, and its blocks are shuffled. Batches hold the same classes as without; but they find most of their
            images in few blocks, which a memory of a part of the data can hold. See `ParquetImages` for the numbers.

    Raises:
        ValueError: fewer than two classes, labels that are not one row of integers, P < 2, K < 1 or a
        negative seed.
    """

    def __init__(
        self,
        labels: ArrayLike,
        classes_per_batch: int,
        samples_per_class: int,
        seed: int = 0,
        blocks: ArrayLike | None = None,
    ) -> None:
        labels = np.asarray(labels)
        if labels.ndim != 1 or (labels.size and not np.issubdtype(labels.dtype, np.integer)):
            raise ValueError(
                f"labels must be one row of integers, not {labels.dtype} of shape {labels.shape}"
            )
        if classes_per_batch < 2:
            raise ValueError(f"classes_per_batch must be at least 2, not {classes_per_batch}")
        if samples_per_class < 1:
            raise ValueError(f"samples_per_class must be at least 1, not {samples_per_class}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, not {seed}")
        values, labels = np.unique(labels, return_inverse=True)
        if len(values) < 2:
            raise ValueError(f"batches need samples of at least two classes, the labels have {len(values)}")
        self.classes_per_batch = classes_per_batch
        self.samples_per_class = samples_per_class
        self.seed = seed
        self._blocks = None if blocks is None else np.unique(blocks, return_inverse=True)[1]  # (N,)
        self._weights: NDArray[np.float64] | None = None  # (N,)
        self._labels = labels  # (N,) in 0 ... C - 1, each of them present
        self._sizes = np.bincount(labels)  # (C,) samples
        self._chunks = -(-self._sizes // samples_per_class)  # (C,)
        self._largest = int(self._chunks.argmax())
        self._extra = self._chunks_to_add()
        self.num_batches = -(-(int(self._chunks.sum()) + self._extra) // classes_per_batch)

    def __len__(self) -> int:
        """Number of batches of an epoch, the same for every epoch."""
        return self.num_batches

    def weighted(self, weights: ArrayLike) -> PKSampler:
        """The same, but a sample is passed over as often as its weight says; another one then takes its place.

        That is any sample, of the same block of storage, drawn in proportion to the weights. So not every sample
        comes in an epoch, chunks hold other classes, and a batch may be of one class.

        Args:
            weights: (N,) in [0, 1]; all 1: the same batches.

        Raises:
            ValueError: not one weight in [0, 1] for each sample.
        """
        weights = np.asarray(weights, np.float64)
        if weights.shape != self._labels.shape or not ((weights >= 0) & (weights <= 1)).all():
            raise ValueError(f"weights must be {len(self._labels)} numbers in [0, 1], one for each sample")
        other = copy.copy(self)
        other._weights = weights
        return other

    def epoch(self, epoch: int) -> list[Indices]:
        """Index arrays into the labels, one a batch; the K samples of a chunk lie side by side."""
        rng = np.random.default_rng((self.seed, epoch))
        chunks = self._chunks + self._share_of_extra(rng)  # (C,)
        # Classes with many chunks are dealt first, equal ones in random order.
        order = rng.permutation(len(chunks))
        order = order[np.argsort(-chunks[order], kind="stable")]  # (C,)
        chunk_class = np.repeat(order, chunks[order])  # (M,)
        if self._blocks is None:
            columns = _deal(chunk_class, self.classes_per_batch, self.num_batches, rng)  # (M,) batch of each
            samples = self._samples(chunk_class, _count_up(chunk_class), rng.permutation(len(self._labels)))
        else:
            place = rng.permutation(len(self._labels))[self._blocks]  # (N,) when its block is due
            shuffled = rng.permutation(len(self._labels))
            shuffled = shuffled[np.argsort(place[shuffled], kind="stable")]
            # Which of a class's chunks comes first is random, so that each row of the grid has early and late ones.
            runs = np.cumsum(np.append(0, chunk_class[1:] != chunk_class[:-1]))
            number = np.empty_like(chunk_class)
            number[np.lexsort((rng.random(len(runs)), runs))] = _count_up(chunk_class)
            samples = self._samples(chunk_class, number, shuffled)
            due = place[samples].mean(axis=1)
            columns = _deal(chunk_class, self.classes_per_batch, self.num_batches, rng, due)
        samples = samples[np.argsort(columns, kind="stable")].reshape(-1)  # (M * K,)
        if self._weights is not None:
            samples = self._passed_over(samples, self._weights, rng)
        size = self.classes_per_batch * self.samples_per_class
        return [samples[start : start + size] for start in range(0, len(samples), size)]

    def _samples(self, chunk_class: Indices, chunk_number: Indices, shuffled: Indices) -> Indices:
        """(M, K) samples of chunks, given their classes (M,), their numbers in the class (M,) and all samples (N,)."""
        shuffled = shuffled[
            np.argsort(self._labels[shuffled], kind="stable")
        ]  # by class, else in the given order
        starts = np.cumsum(self._sizes) - self._sizes
        k = self.samples_per_class
        # Slots past the end of a class start over at its beginning: that tops up the last chunk.
        slots = chunk_number[:, None] * k + np.arange(k)  # (M, K)
        slots %= self._sizes[chunk_class, None]
        found: Indices = shuffled[starts[chunk_class, None] + slots]
        return found

    def _passed_over(
        self, samples: Indices, weights: NDArray[np.float64], rng: np.random.Generator
    ) -> Indices:
        """Samples (n,), each with the probability 1 - its weight exchanged for one of its block; O(N + n)."""
        found, passed = samples.copy(), np.flatnonzero(rng.random(len(samples)) >= weights[samples])
        blocks = np.zeros_like(self._labels) if self._blocks is None else self._blocks
        sizes = np.bincount(blocks)
        order, first = np.argsort(blocks, kind="stable"), np.cumsum(sizes) - sizes
        # Any sample of the block is proposed, and taken as often as its weight says. So a weight decides on its own
        # sample, and one that rounding has moved changes no other draw: all numbers are drawn, whatever is passed over.
        for _ in range(_PROPOSALS):
            place, taken = rng.random(len(samples)), rng.random(len(samples))
            block = blocks[samples[passed]]
            proposed = order[first[block] + (place[passed] * sizes[block]).astype(np.int64)]
            accepted = taken[passed] < weights[proposed]
            found[passed[accepted]] = proposed[accepted]
            passed = passed[~accepted]
        # What is left lies in blocks of hardly any weight.
        upto = np.append(0.0, np.cumsum(weights[order]))  # (N + 1,)
        place, block = rng.random(len(samples))[passed], blocks[samples[passed]]
        low, high = upto[first[block]], upto[first[block] + sizes[block]]
        at = np.searchsorted(upto, low + place * (high - low), side="right") - 1
        drawn = order[np.clip(at, first[block], first[block] + sizes[block] - 1)]
        found[passed] = np.where(high > low, drawn, samples[passed])  # where all are 0 nothing is exchanged
        return found

    def _chunks_to_add(self) -> int:
        """Extra chunks of the classes other than the largest so that each batch has two classes."""
        largest, total = int(self._chunks[self._largest]), int(self._chunks.sum())
        needed = -(-largest // (self.classes_per_batch - 1))
        extra = max(0, needed - (total - largest))
        if (total + extra) % self.classes_per_batch == 1:
            extra += 1
        return extra

    def _share_of_extra(self, rng: np.random.Generator) -> Indices:
        """(C,) the extra chunks of each class: even, the odd ones to random classes, none to the largest."""
        others = rng.permutation(np.delete(np.arange(len(self._chunks)), self._largest))
        share = np.zeros(len(self._chunks), np.int64)
        share[others] = self._extra // len(others)
        share[others[: self._extra % len(others)]] += 1
        return share


def _count_up(values: Indices) -> Indices:
    """(M,) how many of the same value come before each, given that equal ones lie side by side."""
    starts = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
    return np.arange(len(values)) - np.repeat(starts, np.diff(np.append(starts, len(values))))


def _spread(by_time: Indices, length: int, used: Indices) -> Indices:
    """(length,) columns for a row's first chunks, near the times at which they are due, of those that are least used.

    Args:
        by_time: (L,) the row's chunks in the order in which they are due.
        length: how many chunks come first in the row and need such a column.
        used: (L,) of each column, in order.
    """
    candidates = np.flatnonzero(used == 0)
    if len(candidates) < length:
        return np.sort(np.argsort(used, kind="stable")[:length])
    wanted = np.flatnonzero(by_time < length)  # (length,) ascending
    at = np.searchsorted(candidates, wanted)
    step = np.arange(length)
    at = np.maximum.accumulate(at - step) + step  # each its own
    found: Indices = candidates[np.minimum(at, len(candidates) - length + step)]
    return found


def _deal(
    chunk_class: Indices,
    height: int,
    num_batches: int,
    rng: np.random.Generator,
    due: NDArray[np.float64] | None = None,
) -> Indices:
    """(M,) batch of each chunk, given the chunks' classes (M,), equal ones side by side.

    The batches are the columns of a grid of `height` rows that is filled row by row, in random order within a
    row. A class that runs from one row into the next goes to the columns that have fewest of it. So no batch
    has a class twice that has fewer chunks than there are full batches. The last column, which is the last
    batch, has cells only in as many rows as chunks are left for it, evenly spaced down the grid: two cells
    there are two classes.

    With times (M,) at which chunks are due, a row is filled in their order instead of a random one.
    """
    total, full = len(chunk_class), num_batches - 1
    left = total - full * height  # chunks of the last batch, 1 ... height
    has_last = np.zeros(height, bool)
    has_last[(np.arange(left) + 1) * height // left - 1] = True
    ends = np.cumsum(full + has_last)  # (height,) of the rows
    columns = np.empty(total, np.int64)
    used = np.zeros(num_batches, np.int64)  # chunks that each column has of the class at the row's beginning
    start = 0
    for row, end in enumerate(ends):
        if end == start:
            continue
        free = rng.permutation(full)
        if has_last[row]:
            free = np.append(free, full)
        first, length = chunk_class[start], 0
        if start and chunk_class[start - 1] == first:
            length = int(np.count_nonzero(chunk_class[start:end] == first))
            if due is None:
                head = free[np.argsort(used[free], kind="stable")[:length]]
            else:
                head = _spread(np.argsort(due[start:end], kind="stable"), length, used[np.sort(free)])
            rest = np.ones(num_batches, bool)
            rest[head] = False
            free = np.concatenate([head, free[rest[free]]])
        if due is not None:
            for part in (slice(0, length), slice(length, None)):
                by_time = np.argsort(due[start:end][part], kind="stable")
                free[part][by_time] = np.sort(free[part])
        columns[start:end] = free
        # What the next row has to know: where the class that ends this row has been put.
        last = chunk_class[end - 1]
        if not (start and chunk_class[start - 1] == last):
            used[:] = 0
        used[free[chunk_class[start:end] == last]] += 1
        start = end
    return columns
