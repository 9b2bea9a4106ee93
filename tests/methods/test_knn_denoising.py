from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from prism_dml.methods.knn_denoising import vote

from .stand_in import INDEX, LABELS, B, C, N, build, draw, embed_all, step


def test_vote_against_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = normalize(torch.randn(60, 6, generator=generator), dim=1)
    labels = torch.randint(4, (60,), generator=generator)
    selection = vote(embeddings, labels, 7)
    for i in range(60):
        order = sorted((j for j in range(60) if j != i), key=lambda j: -float(embeddings[i] @ embeddings[j]))
        votes = Counter(labels[order[:7]].tolist())
        given = votes.pop(int(labels[i]), 0)
        best = max(votes.values(), default=0)
        assert selection.keep[i] == (given >= best)
        assert selection.clean_probability[i].item() == pytest.approx(given / 7)
        assert selection.margin[i].item() == pytest.approx((given - best) / 7)
        suggested = int(selection.suggested_label[i])
        assert suggested == labels[i] if given >= best else votes[suggested] == best
    assert 0 < selection.keep.sum() < 60


def test_few_samples() -> None:
    selection = vote(torch.eye(3)[:2], torch.tensor([0, 1]))
    assert not selection.keep.any() and selection.suggested_label.tolist() == [1, 0]


def wrong_labels() -> tuple[Tensor, Tensor]:
    """Labels of N samples, every fifth one wrong, and images by which only the right ones agree."""
    truth = torch.arange(N) % C
    labels = torch.where(torch.arange(N) < C, (truth + 1) % C, truth)
    patterns = 5 * torch.randn(C, 3, 4, 4, generator=torch.Generator().manual_seed(7))
    return labels, patterns[truth] + 0.1 * draw(0, N)


def test_the_first_epoch_believes_all_and_the_second_what_the_neighbours_say() -> None:
    labels, images = wrong_labels()
    method = build("knn-denoising", labels)

    def embed(network) -> Tensor:
        with torch.no_grad():
            return network(images)

    method.on_epoch_start(embed)
    assert step(method, images[:B], labels[:B], INDEX).all() and method.noise_rate_estimate == 0
    method.on_epoch_start(embed)
    kept = step(method, images[:B], labels[:B], INDEX)
    assert kept.tolist() == [False] * C + [True] * (B - C)
    assert method.noise_rate_estimate == pytest.approx(C / N)
    assert len(method.bank) == B + B - C, "what is not believed is not remembered"
    selection, rate = method.judge(embed(method.embedder), labels, torch.arange(N))
    assert selection.keep.tolist() == [False] * C + [True] * (N - C) and rate == pytest.approx(C / N)
    assert torch.equal(selection.suggested_label, torch.arange(N) % C)


def test_the_vote_is_remembered() -> None:
    method, other = build("knn-denoising"), build("knn-denoising")
    for _ in range(2):
        method.on_epoch_start(embed_all)
    other.load_state_dict(method.state_dict())
    assert torch.equal(method(draw(0), LABELS, INDEX).kept, other(draw(0), LABELS, INDEX).kept)
    assert method.noise_rate_estimate == other.noise_rate_estimate > 0
