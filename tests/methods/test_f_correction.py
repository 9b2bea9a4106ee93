import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from prism_dml.methods.f_correction import estimate_transition, forward_corrected

from .stand_in import INDEX, LABELS, C, Linear, build, draw, embed_all


def test_worked_example() -> None:
    """Ten samples, three of class 0 and seven of class 1: the anchors come 0 and 2 places after the most probable."""
    p = [0.30, 0.60, 0.90, 0.25, 0.20, 0.05, 0.40, 0.10, 0.35, 0.15]
    posterior = torch.tensor([[value, 1 - value] for value in p])
    transition = estimate_transition(posterior, torch.tensor([3, 7]))
    # p(0) is highest for sample 2 (0.90). p(1) is highest for 5, 7 (0.10), 9 (0.15): the third is 9.
    torch.testing.assert_close(transition, torch.tensor([[0.90, 0.10], [0.15, 0.85]]))


def test_of_ten_equal_classes_the_anchor_is_at_the_97th_percentile() -> None:
    posterior = torch.rand(1000, 10, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    transition = estimate_transition(posterior, torch.full((10,), 100))
    for k in range(10):
        above = (posterior[:, k] > transition[k, k]).sum()
        assert above == 30 and any(torch.equal(transition[k], row) for row in posterior)


def test_classes_of_one_sample_or_none() -> None:
    posterior = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]])
    transition = estimate_transition(posterior, torch.tensor([1, 1, 0]))
    assert torch.equal(transition, posterior[[0, 1, 1]])


def test_corrected_loss_against_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    transition = torch.rand(4, 4, generator=generator, dtype=torch.float64).softmax(dim=1)
    labels = torch.tensor([0, 3, 2, 1, 1, 0])
    probability = (logits.softmax(dim=1) @ transition)[torch.arange(6), labels]
    torch.testing.assert_close(forward_corrected(logits, labels, transition), -probability.log().mean())
    without = forward_corrected(logits, labels, torch.eye(4).double())
    torch.testing.assert_close(without, cross_entropy(logits, labels), rtol=1e-6, atol=1e-6)
    assert torch.autograd.gradcheck(
        lambda x: forward_corrected(x, labels, transition), logits.requires_grad_()
    )


def test_corrected_loss_stays_finite() -> None:
    logits = torch.tensor([[500.0, -500.0]], requires_grad=True)
    loss = forward_corrected(logits, torch.tensor([1]), torch.eye(2))
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


def test_each_round_trains_its_own_network() -> None:
    method, images = build("f-correction"), draw(0)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.on_round_start(0, embed_all)
    loss, kept = method(images, LABELS, INDEX)
    loss.backward()
    assert method.embedder.weight.grad is None and method.peer.weight.grad.any() and kept.all()
    assert method.class_weights[1].grad is None and method.class_weights[0].grad.any()
    assert torch.equal(method.transition, torch.eye(C))
    method.zero_grad()

    method.on_round_start(1, embed_all)
    images_of_all = draw(0, len(method.data.labels))
    posterior = (images_of_all.flatten(1) @ method.peer.weight @ method.class_weights[0].T).softmax(dim=1)
    assert torch.equal(method.transition, estimate_transition(posterior, method.data.labels.bincount()))
    loss, kept = method(images, LABELS, INDEX)
    loss.backward()
    assert method.peer.weight.grad is None and method.embedder.weight.grad.any() and kept.all()
    logits = images.flatten(1) @ method.embedder.weight @ method.class_weights[1].T
    torch.testing.assert_close(loss, forward_corrected(logits, LABELS, method.transition))
    same = {"embedder.weight", "peer.weight", "class_weights.0", "class_weights.1"}
    assert all(torch.equal(before[name], method.state_dict()[name]) for name in same)


def test_the_round_is_remembered() -> None:
    method, other = build("f-correction"), build("f-correction")
    method.on_round_start(1, embed_all)
    other.load_state_dict(method.state_dict())
    assert torch.equal(method(draw(0), LABELS, INDEX).loss, other(draw(0), LABELS, INDEX).loss)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5])
def test_the_estimate_is_near_the_true_matrix_of_symmetric_noise(rate: float) -> None:
    """Five well separated groups, labels wrong at a known rate: within 0.05 in each entry."""
    generator, classes, each, dim = torch.Generator().manual_seed(0), 5, 1500, 8
    truth = torch.arange(classes).repeat_interleave(each)
    points = torch.eye(dim)[truth] + 0.05 * torch.randn(len(truth), dim, generator=generator)
    wrong = torch.rand(len(truth), generator=generator) < rate
    other = (truth + torch.randint(1, classes, truth.shape, generator=generator)) % classes
    labels = torch.where(wrong, other, truth)
    method = build("f-correction", labels, Linear(pixels=dim, dim=dim))

    optimizer = torch.optim.Adam(method.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        method(points, labels, torch.arange(len(labels))).loss.backward()
        optimizer.step()

    def embed_points(network) -> Tensor:
        with torch.no_grad():
            return network(points)

    method.on_round_start(1, embed_points)
    expected = torch.full((classes, classes), rate / (classes - 1)).fill_diagonal_(1 - rate)
    assert (method.transition - expected).abs().max() < 0.05
    assert method.transition.sum(dim=1).tolist() == pytest.approx([1.0] * classes, abs=1e-5)
