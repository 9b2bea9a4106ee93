"""Images that come several times, exactly alike, under one label."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from prism_dml import find_label_issues


def drawn(classes: int, photos: int, spread: float = 0.06) -> tuple[Tensor, Tensor]:
    """Embeddings (classes * photos, 64) and their classes."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(classes).repeat_interleave(photos)
    centres = normalize(torch.randn(classes, 64, generator=generator), dim=1)
    return centres[truth] + torch.randn(len(truth), 64, generator=generator) * spread, truth


def doubted(embeddings: Tensor, labels: Tensor) -> np.ndarray:
    return find_label_issues(embeddings, labels).is_label_issue.to_numpy(dtype=bool)


def some_wrong(truth: Tensor, share: float = 0.1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    wrong = torch.rand(len(truth), generator=generator) < share
    other = truth + torch.randint(1, int(truth.max()) + 1, truth.shape, generator=generator)
    return torch.where(wrong, other % (int(truth.max()) + 1), truth)


@pytest.mark.parametrize("wrong", [0, 1, 3])
@pytest.mark.parametrize("others", [0, 2])
def test_a_class_that_is_one_image_many_times_is_not_doubted_for_what_else_has_its_label(
    wrong: int, others: int
) -> None:
    embeddings, truth = drawn(classes=20, photos=30)
    one = truth == 0
    embeddings[one] = torch.where(torch.arange(30)[:, None] < 30 - others, embeddings[0], embeddings[one])
    labels = truth.clone()
    labels[100 : 100 + 40 * wrong : 40] = 0
    assert np.array_equal(doubted(embeddings, labels), (labels != truth).numpy())


@pytest.mark.parametrize(("photos", "times", "most"), [(1, 4, 0.02), (2, 3, 0), (3, 3, 0), (5, 2, 0)])
def test_right_labels_of_products_with_few_photographs_many_times_each(
    photos: int, times: int, most: float
) -> None:
    embeddings, truth = drawn(100, photos)
    embeddings, truth = embeddings.repeat_interleave(times, dim=0), truth.repeat_interleave(times)
    labels = some_wrong(truth)
    found, wrong = doubted(embeddings, labels), (labels != truth).numpy()
    assert found[wrong].mean() > 0.95 and found[~wrong].mean() <= most


@pytest.mark.parametrize(("photos", "times"), [(15, 2), (10, 3), (8, 5)])
def test_copies_that_share_a_wrong_label_do_not_vouch_for_each_other(photos: int, times: int) -> None:
    embeddings, truth = drawn(8, photos, spread=0.15)
    labels = some_wrong(truth, 0.3)
    embeddings, truth, labels = (x.repeat_interleave(times, dim=0) for x in (embeddings, truth, labels))
    found, wrong = doubted(embeddings, labels), (labels != truth).numpy()
    assert found[wrong].mean() > 0.95 and found[~wrong].mean() < 0.03
