import numpy as np
import pytest
import torch

from prism_dml.retrieval import graph, nearest_neighbours, neighbour_graph


def rows(count=600, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=generator), dim=1)


@pytest.fixture
def by_index(monkeypatch):
    monkeypatch.setattr(graph, "EXACT_UP_TO", 10)


def test_few_samples_are_searched_exactly():
    for found, expected in zip(neighbour_graph(rows(), 5), nearest_neighbours(rows(), k=5), strict=True):
        torch.testing.assert_close(found, expected)


def test_index_finds_most_neighbours_and_never_the_sample_itself(by_index):
    near, found = neighbour_graph(rows(), 5)
    _, exact = nearest_neighbours(rows(), k=5)
    assert (found[:, :, None] == exact[:, None, :]).any(dim=2).float().mean() > 0.5
    assert not (found == torch.arange(600)[:, None]).any()
    assert (near.diff(dim=1) <= 0).all()
    expected = (rows()[:, None] * rows()[found]).sum(dim=2)
    there = near > -1
    torch.testing.assert_close(near[there], expected[there], atol=1e-5, rtol=0)


def test_duplicates_find_each_other(by_index):
    copied = rows(300).repeat_interleave(2, dim=0)
    near, found = neighbour_graph(copied, 3)
    assert (found[:, 0] == (torch.arange(600) ^ 1)).float().mean() > 0.99
    np.testing.assert_allclose(near[:, 0], 1, atol=1e-5)


def test_a_sample_alone_in_its_cells_finds_another(by_index):
    copies = rows(10, 16).repeat(600, 1)
    embeddings = torch.cat([copies, rows(20, 16, seed=1)])
    near, found = neighbour_graph(embeddings, 4)
    cosines = (embeddings * embeddings[found[:, 0]]).sum(dim=1)
    torch.testing.assert_close(near[:, 0], cosines, atol=1e-5, rtol=0)
    assert not (found == torch.arange(len(found))[:, None]).any()


def test_cells_of_fewer_samples_than_neighbours(by_index):
    near, found = neighbour_graph(rows(40), 30)
    assert found.min() >= 0 and found.max() < 40
    assert (near.diff(dim=1) <= 0).all()
