"""Exact search against a sort of the whole similarity matrix."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from prism_dml.retrieval import nearest_neighbours
from prism_dml.retrieval.neighbours import unit_rows


def corners(n: int, seed: int) -> torch.Tensor:
    """Vectors whose unit forms have exact cosines, with many duplicates and ties; some are zero."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(-1, 2, (n, 4), generator=generator).float()
    signs[signs.abs().sum(dim=1) % 2 == 1, :3] = 0.0  # norms of 1 or 2 only, after the next line
    signs[signs.abs().sum(dim=1) == 2] = torch.tensor([1.0, 1.0, -1.0, 1.0])
    return signs


def naive(query, reference, k):
    itself = reference is None
    reference = query if itself else reference
    similarities = normalize(query, dim=1) @ normalize(reference, dim=1).T
    values, indices = [], []
    for i, row in enumerate(similarities.tolist()):
        ranked = sorted((j for j in range(len(row)) if not (itself and j == i)), key=lambda j: (-row[j], j))[
            :k
        ]
        indices.append(ranked)
        values.append([row[j] for j in ranked])
    return torch.tensor(values), torch.tensor(indices)


@settings(max_examples=60, deadline=None)
@given(
    queries=st.integers(1, 9),
    references=st.integers(0, 30),
    chunk_bytes=st.sampled_from([1, 16, 100, 1000, 10**6]),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_ties_and_duplicates_in_any_chunks(queries, references, chunk_bytes, seed, data):
    query = corners(queries + 1, seed)
    reference = corners(references, seed + 1) if references else None
    k = data.draw(st.integers(1, references or queries))
    similarities, indices = nearest_neighbours(query, reference, k, chunk_bytes)
    expected = naive(query, reference, k)
    torch.testing.assert_close(similarities, expected[0])
    assert torch.equal(indices, expected[1])


@pytest.mark.parametrize("chunk_bytes", [4000, 16 * 2**20])
def test_random_vectors(chunk_bytes):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(80, 16, generator=generator)
    reference = torch.randn(300, 16, generator=generator)
    for base in (None, reference):
        similarities, indices = nearest_neighbours(query, base, 5, chunk_bytes)
        expected = naive(query, base, 5)
        torch.testing.assert_close(similarities, expected[0])
        assert torch.equal(indices, expected[1])


def test_a_duplicate_is_found_and_itself_is_not():
    rows = torch.randn(1, 8, generator=torch.Generator().manual_seed(0)).expand(6, 8)
    _, indices = nearest_neighbours(rows, None, 5)
    assert indices.tolist() == [[j for j in range(6) if j != i] for i in range(6)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(dtype):
    rows = torch.randn(20, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    similarities, indices = nearest_neighbours(rows, None, 3)
    expected = nearest_neighbours(rows.double(), None, 3)
    assert similarities.dtype == torch.float32
    torch.testing.assert_close(similarities, expected[0])
    assert torch.equal(indices, expected[1])
    if dtype != torch.bfloat16:
        assert torch.equal(nearest_neighbours(rows.numpy(), None, 3)[1], indices)


def test_length_of_vectors_does_not_matter():
    rows = torch.randn(10, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = nearest_neighbours(rows, None, 9)
    for scale in (1e-300, 1e-30, 1e30, 1e300):
        similarities, indices = nearest_neighbours(rows * scale, None, 9)
        torch.testing.assert_close(similarities, expected[0])
        assert torch.equal(indices, expected[1])


@pytest.mark.parametrize(
    ("query", "reference", "k", "message"),
    [
        (np.zeros(3), None, 1, "query must be floats"),
        (np.zeros((3, 2), dtype=np.int64), None, 1, "query must be floats"),
        (np.array([[1.0, np.nan]]), np.ones((2, 2)), 1, "query has values that are not finite"),
        (np.ones((1, 2)), np.array([[np.inf, 1.0]]), 1, "reference has values that are not finite"),
        (np.ones((1, 2)), np.ones((1, 3)), 1, "query has 2 dimensions, reference 3"),
        (np.ones((4, 2)), None, 4, "k must be from 1 to 3"),
        (np.ones((4, 2)), np.ones((2, 2)), 0, "k must be from 1 to 2"),
        (np.ones((1, 2)), None, 1, "k must be from 1 to 0"),
    ],
)
def test_mistakes(query, reference, k, message):
    with pytest.raises(ValueError, match=message):
        nearest_neighbours(query, reference, k)


def test_bad_chunk():
    with pytest.raises(ValueError, match="chunk_bytes"):
        nearest_neighbours(np.ones((3, 2)), None, 1, chunk_bytes=0)


@pytest.mark.parametrize("among_themselves", [True, False])
@pytest.mark.parametrize("k", [1, 7, 90])
def test_references_that_become_better_and_better(among_themselves, k):
    """The opposite of what makes the search fast: every block beats all before it."""
    angles = torch.linspace(3, 0, 400, dtype=torch.float64)
    rows = torch.stack([angles.cos(), angles.sin()], dim=1)
    base = None if among_themselves else rows
    query = rows if among_themselves else rows[-5:]
    similarities, indices = nearest_neighbours(query, base, k, chunk_bytes=4096)
    expected = naive(query.float(), None if base is None else base.float(), k)
    torch.testing.assert_close(similarities, expected[0])
    found = (query[:, None] * rows[indices]).sum(-1).float()  # rounding may order equals otherwise
    torch.testing.assert_close(found, expected[0])


def test_rows_of_unit_length_are_not_copied():
    rows = torch.nn.functional.normalize(
        torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), dim=1
    )
    assert unit_rows(rows, "rows").data_ptr() == rows.data_ptr()
    assert unit_rows(2 * rows, "rows").allclose(rows)
    rows[3] *= 1.001
    assert (unit_rows(rows, "rows").norm(dim=1) - 1).abs().max() < 1e-6


def test_never_holds_all_similarities():
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else [result]:
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.untyped_storage().nbytes())
            return result

    rows = torch.randn(4000, 4, generator=torch.Generator().manual_seed(0))
    with Sizes():
        nearest_neighbours(rows, None, 3, chunk_bytes=2**18)
    assert 2**17 <= largest <= 2**18 < 4000 * 4000 * 4
