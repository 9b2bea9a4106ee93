import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from prism_dml.methods.refract import Refract

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


@pytest.fixture
def labels() -> Tensor:
    return flip(3)


@pytest.fixture
def looked(labels: Tensor) -> Refract:
    method = build("refract", labels, Linear(dim=16))
    images = images_of(TRUTH)
    method.on_epoch_start(embed(images))
    assert method.trusted.all() and torch.equal(method.believed, labels) and method.noise_rate_estimate == 0
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
    assert torch.equal(looked.believed, TRUTH)
    assert looked.noise_rate_estimate == pytest.approx(1 / 3, abs=0.03)


def test_the_loss_is_that_of_what_is_believed(looked: Refract, labels: Tensor) -> None:
    batch = torch.arange(30, 50)
    images = images_of(TRUTH)[batch]
    looked.believed[33] = -1
    loss, kept = looked(images, labels[batch], batch)
    assert torch.equal(kept, looked.trusted[batch])
    weights = normalize(looked.proxies()[0], dim=0)  # (D, C)
    cosines = looked.embedder(images) @ weights
    inside = batch != 33
    torch.testing.assert_close(loss, cross_entropy(cosines[inside] / 0.1, TRUTH[batch][inside]))


def test_a_batch_of_which_nothing_is_believed_has_no_gradient(looked: Refract, labels: Tensor) -> None:
    batch = torch.arange(10)
    looked.believed[batch], looked.trusted[batch] = -1, False
    looked.zero_grad()
    loss, kept = looked(images_of(TRUTH)[batch], labels[batch], batch)
    loss.backward()
    assert loss == 0 and not kept.any()
    assert not any(p.grad.any() for p in looked.parameters() if p.grad is not None)


def test_what_belongs_nowhere_is_left_out(labels: Tensor) -> None:
    """A tenth of the samples is of no class: many are left out, and hardly one is put under another label."""
    images = images_of(TRUTH)
    stranger = torch.arange(COUNT) % 10 == 9
    images[stranger] = 5 * draw(3, int(stranger.sum()))
    method = build("refract", labels, Linear(dim=16))
    for _ in range(2):
        method.on_epoch_start(embed(images))
    believed, given = method.believed[stranger], labels[stranger]
    assert (believed == -1).float().mean() > 0.3
    assert ((believed != -1) & (believed != given)).float().mean() < 0.2
    assert torch.equal(method.believed[~stranger], TRUTH[~stranger])


def test_clean_labels_stay() -> None:
    method = build("refract", TRUTH, Linear(dim=16))
    for _ in range(2):
        method.on_epoch_start(embed(images_of(TRUTH)))
    assert torch.equal(method.believed, TRUTH) and method.noise_rate_estimate < 0.02


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
