import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from prism_dml.methods.refract import Judged, Refract

from .stand_in import Linear, build, draw, step

CLASSES, EACH = 8, 20
COUNT = CLASSES * EACH
TRUTH = torch.arange(COUNT) % CLASSES


def images_of(truth: Tensor, spread: float = 0.1) -> Tensor:
    """Images by which those of one class agree."""
    patterns = 5 * torch.randn(CLASSES, 3, 4, 4, generator=torch.Generator().manual_seed(7))
    return patterns[truth] + spread * draw(0, len(truth))


def flip(every: int) -> Tensor:
    """Labels of which every so-manieth sample's is wrong, by a shift that differs from one to the next."""
    shift = 1 + torch.arange(COUNT) // every % (CLASSES - 1)
    wrong = torch.arange(COUNT) % every == 0
    return torch.where(wrong, (TRUTH + shift) % CLASSES, TRUTH)


def embed(images: Tensor):
    def of(network: nn.Module) -> Tensor:
        with torch.no_grad():
            return network(images)

    return of


def learned_as(method: Refract) -> Tensor:
    """The class (N,) that weighs most in the loss of each sample."""
    return method.targets.gather(1, method.weights.argmax(dim=1, keepdim=True)).squeeze(1)


@pytest.fixture
def labels() -> Tensor:
    return flip(3)


@pytest.fixture
def looked(labels: Tensor) -> Refract:
    method = build("refract", labels, Linear(dim=16))
    images = images_of(TRUTH)
    method.on_epoch_start(embed(images))
    assert (
        method.trusted.all() and torch.equal(learned_as(method), labels) and method.noise_rate_estimate == 0
    )
    batch = torch.arange(20)
    assert step(method, images[batch], labels[batch], batch).all()
    method.on_epoch_start(embed(images))
    return method


@pytest.mark.parametrize(
    "epoch, expected",
    [
        (3, [6, 12, 18, 24, 36, 48, 72, 96, 144, 192, 288, 384, 576, 768]),  # the first after two epochs
        (40, [50, 100, 150, 200, 300, 400, 600]),  # after a sixteenth of the run
        (150, [50, 150, 300, 400, 600]),  # looks half an epoch apart
        (700, [50, 400]),
    ],
)
def test_looks_are_denser_early_in_the_run(epoch: int, expected: list[int]) -> None:
    method = build("refract", TRUTH, Linear(dim=16))
    assert method.look_every(epoch, steps=3) == 1
    looks = []
    for begun in range(0, 790, method.look_every(epoch, steps=790)):
        asked = []

        def embed_all(network: nn.Module, asked: list[nn.Module] = asked) -> Tensor:
            asked.append(network)
            return embed(images_of(TRUTH))(network)

        method.on_epoch_start(embed_all)
        looks += [begun] * len(asked)
    assert looks == expected


def test_wrong_labels_are_put_right(looked: Refract, labels: Tensor) -> None:
    assert torch.equal(looked.trusted, labels == TRUTH)
    assert torch.equal(learned_as(looked), TRUTH)
    assert looked.noise_rate_estimate == pytest.approx(1 / 3, abs=0.03)


def test_trusted_labels_count_whole_and_others_by_their_probabilities(
    looked: Refract, labels: Tensor
) -> None:
    suggested = (labels + 1) % CLASSES
    clean, probability = torch.full((COUNT,), 0.1), torch.full((COUNT,), 0.7)
    clean[0], probability[0], suggested[0] = 0.6, 0.6, labels[0]  # trusted
    clean[1], probability[1] = 0.4, 0.5
    clean[2], probability[2], suggested[2] = 0.45, 0.45, labels[2]  # doubtful, and yet the most probable
    looked._believe(Judged(clean, suggested, probability, 0.4), labels)
    assert looked.trusted.nonzero().squeeze(1).tolist() == [0]
    assert torch.equal(looked.targets, torch.stack([labels, suggested], dim=1))
    expected = torch.tensor([[1.0, 0.0], [0.4, 0.5], [0.45, 0.0], [0.1, 0.7]])
    torch.testing.assert_close(looked.weights[:4], expected)
    assert looked.noise_rate_estimate == pytest.approx(0.4)


def test_the_loss_is_that_of_the_weighed_labels(looked: Refract, labels: Tensor) -> None:
    batch = torch.arange(30, 50)
    images = images_of(TRUTH)[batch]
    looked.weights[33] = 0
    looked.weights[34], looked.targets[34] = torch.tensor([0.3, 0.5]), torch.tensor([2, 5])
    loss, kept = looked(images, labels[batch], batch)
    assert torch.equal(kept, looked.trusted[batch])
    weights = normalize(looked.proxies()[0], dim=1)  # (C, D)
    cosines = looked.embedder(images) @ weights.T
    total, mass = 0.0, 0.0
    for i, row in zip(batch.tolist(), cosines, strict=True):
        for label, weight in zip(looked.targets[i], looked.weights[i], strict=True):
            total, mass = total + weight * cross_entropy(row / 0.1, label), mass + weight
    torch.testing.assert_close(loss, total / mass)


def test_a_batch_of_which_nothing_is_believed_has_no_gradient(looked: Refract, labels: Tensor) -> None:
    batch = torch.arange(10)
    looked.weights[batch], looked.trusted[batch] = 0, False
    looked.zero_grad()
    loss, kept = looked(images_of(TRUTH)[batch], labels[batch], batch)
    loss.backward()
    assert loss == 0 and not kept.any()
    assert not any(p.grad.any() for p in looked.parameters() if p.grad is not None)


def test_what_belongs_nowhere_is_hardly_learned(labels: Tensor) -> None:
    """A tenth of the samples is of no class: many hardly count, and none counts much under another label."""
    images = images_of(TRUTH)
    stranger = torch.arange(COUNT) % 10 == 9
    images[stranger] = 5 * draw(3, int(stranger.sum()))
    method = build("refract", labels, Linear(dim=16))
    for _ in range(2):
        method.on_epoch_start(embed(images))
    assert (method.weights[stranger].sum(dim=1) < 0.4).float().mean() > 0.4
    assert method.weights[stranger, 1].max() < 0.2
    assert torch.equal(learned_as(method)[~stranger], TRUTH[~stranger])
    assert method.weights[~stranger].sum(dim=1).min() > 0.8


def test_clean_labels_stay() -> None:
    method = build("refract", TRUTH, Linear(dim=16))
    for _ in range(2):
        method.on_epoch_start(embed(images_of(TRUTH)))
    assert torch.equal(learned_as(method), TRUTH) and method.noise_rate_estimate < 0.02


def test_what_could_not_be_embedded_is_believed(looked: Refract, labels: Tensor) -> None:
    vectors = normalize(images_of(TRUTH).flatten(1), dim=1)
    vectors[:3] = 0
    selection, rate = looked.judge(vectors, labels, torch.arange(COUNT))
    assert selection.keep[:3].all() and torch.equal(selection.suggested_label[:3], labels[:3])
    assert torch.equal(selection.keep[3:], (labels == TRUTH)[3:])
    assert torch.equal(selection.suggested_label[3:], TRUTH[3:])
    assert ((selection.margin > 0) == selection.keep).all() and rate == pytest.approx(1 / 3, abs=0.03)
    selection, rate = looked.judge(torch.zeros_like(vectors), labels, torch.arange(COUNT))
    assert selection.keep.all() and rate == 0


def test_the_judgement_is_remembered(looked: Refract, labels: Tensor) -> None:
    other = build("refract", labels, Linear(dim=16))
    other.load_state_dict(looked.state_dict())
    batch, images = torch.arange(20), images_of(TRUTH)[:20]
    for a, b in zip(looked(images, labels[batch], batch), other(images, labels[batch], batch), strict=True):
        assert torch.equal(a, b)
    assert other.noise_rate_estimate == looked.noise_rate_estimate
