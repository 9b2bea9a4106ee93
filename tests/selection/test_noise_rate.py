"""The estimate of the share of wrong labels: stable facts only."""

import copy
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from prism_dml.selection import PRISM, NoiseRateEstimator
from prism_dml.selection.evidence import weigh
from prism_dml.selection.noise_rate import mean_rate

C, D = 40, 32


def draw(generator: torch.Generator, count: int, wrong: float, spread: float = 0.12) -> tuple[Tensor, Tensor]:
    """Embeddings round C directions, a share of the labels wrong: one of the other classes."""
    directions = normalize(torch.randn(C, D, generator=torch.Generator().manual_seed(9)), dim=1)
    truth = torch.randint(C, (count,), generator=generator)
    shift = torch.randint(1, C, (count,), generator=generator)
    labels = torch.where(torch.rand(count, generator=generator) < wrong, (truth + shift) % C, truth)
    noise = spread * torch.randn(count, D, generator=generator)
    return normalize(directions[truth] + noise, dim=1), labels


@pytest.mark.parametrize("wrong", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("similarity", ["centre", "vmf"])
def test_within_five_points(wrong: float, similarity) -> None:
    generator = torch.Generator().manual_seed(0)
    prism = PRISM(C, D, similarity=similarity, bank_size=3000)
    rejected = []
    for _ in range(150):
        embeddings, labels = draw(generator, 64, wrong)
        keep = prism(embeddings, labels).keep
        prism.enqueue(embeddings[keep], labels[keep])
        rejected.append(1 - keep.float().mean().item())
    assert prism.noise_rate_estimate == pytest.approx(wrong, abs=0.05)
    assert sum(rejected[-30:]) / 30 == pytest.approx(wrong, abs=0.06)
    selection, rate = prism.judge(*draw(generator, 8000, wrong))
    assert rate == pytest.approx(wrong, abs=0.05)
    assert (~selection.keep).float().mean().item() == pytest.approx(rate, abs=1e-3)


def test_an_estimated_rate_separates_better_than_the_published_softmax() -> None:
    """Blurred classes in groups that look alike: a softmax of cosines is then mostly the group's, not the label's."""
    generator = torch.Generator().manual_seed(1)
    groups = normalize(torch.randn(C // 8, D, generator=generator), dim=1)
    directions = normalize(groups.repeat(8, 1) + 0.1 * torch.randn(C, D, generator=generator), dim=1)
    truth = torch.randint(C, (4000,), generator=generator)
    shift = torch.randint(1, C, (4000,), generator=generator)
    wrong = torch.rand(4000, generator=generator) < 0.5
    labels = torch.where(wrong, (truth + shift) % C, truth)
    embeddings = normalize(directions[truth] + 0.1 * torch.randn(4000, D, generator=generator), dim=1)
    precision = {}
    for rate in (0.5, "auto"):
        prism = PRISM(C, D, noise_rate=rate, bank_size=4000)  # type: ignore[arg-type]
        prism.enqueue(embeddings, labels, torch.arange(4000))
        selection = prism(embeddings, labels, torch.arange(4000))
        trusted = selection.clean_probability.topk(2000).indices
        precision[rate] = (~wrong[trusted]).float().mean().item()
    assert precision["auto"] > precision[0.5] + 0.02 and precision[0.5] > 0.7


def test_no_evidence_is_no_noise() -> None:
    assert PRISM(C, D).noise_rate_estimate == 0
    assert mean_rate(torch.tensor([math.nan, math.nan])) == 0 and mean_rate(torch.zeros(0)) == 0


def test_random_labels_are_estimated_without_bias_for_any_number_of_classes() -> None:
    """The lower part of the ranks must be divided by exactly its share of wrong labels, for 2 classes too."""
    generator = torch.Generator().manual_seed(0)
    for classes in (2, 3, 4, 5, 6, 9, 17):
        count = 20_000
        labels = torch.randint(classes, (count,), generator=generator)
        scores = torch.rand(count, classes, generator=generator)
        scores[torch.arange(count), (labels + 1) % classes] = (
            2.0  # the top rank is another class's: all wrong
        )
        evidence = weigh(scores, torch.ones(classes, dtype=torch.bool), labels)
        assert evidence.implausible.mean().item() == pytest.approx(1, abs=0.05)


def test_only_the_newest_samples_count() -> None:
    estimator = NoiseRateEstimator(10)
    estimator(torch.full((4,), 0.9))
    estimator(torch.full((25,), 0.5))
    assert estimator.estimate.item() == pytest.approx(0.5)
    for _ in range(3):
        estimator(torch.full((3,), 0.2))
    assert estimator.estimate.item() == pytest.approx((9 * 0.2 + 0.5) / 10)
    estimator(torch.full((4,), math.nan))
    assert estimator.estimate.item() == pytest.approx(0.2)


def test_state_round_trip() -> None:
    generator = torch.Generator().manual_seed(0)
    estimator, other = NoiseRateEstimator(50), NoiseRateEstimator(50)
    estimator(torch.rand(33, generator=generator))
    other.load_state_dict(copy.deepcopy(estimator.state_dict()))
    for _ in range(4):
        evidence = torch.rand(20, generator=generator)
        assert torch.equal(estimator(evidence), other(evidence))
