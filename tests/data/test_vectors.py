import itertools

import numpy as np
import pytest
import torch

from prism_dml.data import ImageTable, PKSampler, Share, open_vectors, vector_batches, with_vectors
from prism_dml.data.table import BytesImages

PATHS = [f"{i}.png" for i in range(12)]


@pytest.fixture
def table() -> ImageTable:
    """Three classes of four."""
    return ImageTable(BytesImages([b"never read"] * 12), PATHS, np.arange(12) % 3, list("abc"))


@pytest.fixture
def vectors() -> torch.Tensor:
    """Of each image its number and its square."""
    return torch.stack([torch.arange(1, 13), torch.arange(1, 13) ** 2], dim=1).float()


def test_batches_hold_the_vectors_of_the_samplers_order(table, vectors) -> None:
    batches = vector_batches(table, vectors, 0.0)
    sampler = PKSampler(table.labels, 2, 2, seed=1)
    expected = list(itertools.islice(itertools.chain(sampler.epoch(0), sampler.epoch(1)), 5))
    found = list(itertools.islice(batches.train(sampler, 0), 5))
    for indices, batch in zip(expected, found, strict=True):
        assert batch.index.tolist() == list(indices)
        assert torch.equal(batch.images, vectors[batch.index]) and batch.labels.tolist() == [
            i % 3 for i in indices
        ]
    (later,) = itertools.islice(batches.train(sampler, 0, 4), 1)
    assert torch.equal(later.index, found[4].index)
    shares = [next(iter(batches.train(sampler, 0, 0, Share(rank, 2)))) for rank in (0, 1)]
    assert torch.equal(torch.cat([share.images for share in shares]), found[0].images)


def test_all_are_evaluated_once_in_order(table, vectors) -> None:
    batches = vector_batches(table, vectors, 0.0)
    assert torch.equal(torch.cat([batch.images for batch in batches.evaluate(5)]), vectors)
    shares = [[batch.index for batch in batches.evaluate(5, Share(rank, 2))] for rank in (0, 1)]
    assert [index[0].item() for index in shares[0]] == [0, 10] and [
        index[0].item() for index in shares[1]
    ] == [5]
    few = batches.select([3, 1])
    assert few.table.paths == ["3.png", "1.png"] and torch.equal(
        next(iter(few.evaluate())).images, vectors[[3, 1]]
    )


def test_unreadable_images_are_left_out_or_refused(table, vectors) -> None:
    vectors[[2, 7]] = 0
    batches = vector_batches(table, vectors, 0.2)
    assert list(batches.table.paths) == [path for path in PATHS if path not in ("2.png", "7.png")]
    assert (batches.vectors != 0).all() and len(batches.vectors) == 10
    with pytest.raises(
        ValueError, match=r"2 of 12 images are unreadable, more than the share of 0.1 .*max_unreadable"
    ):
        vector_batches(table, vectors, 0.1)
    with pytest.raises(ValueError, match="12 of 12 images"):
        vector_batches(table, torch.zeros(12, 2), 1.0)


def test_a_table_keeps_its_vectors_through_selections(table, vectors) -> None:
    assert open_vectors(table, 0.0) is None and open_vectors(table.select([1, 2]), 0.0) is None
    for known in (
        with_vectors(table, vectors.numpy()).select([9, 4, 5]),
        with_vectors(table.select([9, 4, 5]), vectors.numpy()),
    ):
        assert torch.equal(open_vectors(known.select([2, 0]), 0.0).vectors, vectors[[5, 9]])
    assert torch.equal(open_vectors(with_vectors(table, vectors.numpy()), 0.0).vectors, vectors)
    assert with_vectors(table, vectors.numpy()).images.read(3) == b"never read"
