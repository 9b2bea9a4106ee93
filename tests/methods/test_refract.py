import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, normalize

from prism_dml.methods.beliefs import Judged, judge, weigh
from prism_dml.methods.compared import KNOWN_BY_HEART
from prism_dml.methods.refract import INSTANCE, MOST, Refract, WarmClassifier
from prism_dml.methods.second_opinion import given_the_label, pool
from prism_dml.models import Embedder
from prism_dml.models.levels import WithLevels
from prism_dml.models.patches import LENGTH, Patches, PatchFeatures
from prism_dml.selection.levels import side_by_side
from prism_dml.selection.mistakes import AnyAlike, ByPair

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


def begun(labels: Tensor) -> Refract:
    """Refract in a run of 16 epochs, so that the first look comes after one."""
    method = build("refract", labels, Linear(dim=16))
    method.look_every(epoch=1, steps=16)
    return method


@contextmanager
def unknown_blocks() -> Iterator[None]:
    """As of another backbone than the small one."""
    modules = ("refract", "compared")
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(mock.patch(f"prism_dml.methods.{module}.widths", lambda embedder: ()))
        yield


def learned_as(method: Refract) -> Tensor:
    """The class (N,) that weighs most in the loss of each sample."""
    return method.targets.gather(1, method.weights.argmax(dim=1, keepdim=True)).squeeze(1)


@pytest.fixture
def labels() -> Tensor:
    return flip(3)


@pytest.fixture
def looked(labels: Tensor) -> Refract:
    method = begun(labels)
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
        (40, [25, 50, 75, 100, 150, 200, 300, 400, 600]),  # after a 32nd of the run
        (150, [25, 100, 200, 300, 400, 600]),  # looks half an epoch apart
        (280, [25, 200, 400, 600]),
        (700, [400]),  # the last one only, of less than two epochs
        (1000, [600]),
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


def test_each_label_counts_as_what_it_may_stand_for(looked: Refract, labels: Tensor) -> None:
    """None is taken as given, however probable; `trusted` says which are believed, all the same."""
    classes = (labels[:, None] + torch.arange(5)) % CLASSES
    chances = torch.tensor([0.1, 0.5, 0.2, 0.1, 0.0]).repeat(COUNT, 1)
    chances[0, :2] = torch.tensor([0.6, 0.0])
    nowhere = torch.full((COUNT,), 0.08)
    looked._believe(Judged(classes, chances, classes[:, 1], chances[:, 1], nowhere, 0.4, AnyAlike(0.4)))
    assert looked.trusted.nonzero().squeeze(1).tolist() == [0]
    assert torch.equal(looked.targets, classes)
    # of the given class the label is seen with 0.6, of each of the seven others with 0.4 / 7
    expected = (chances * torch.tensor([0.6, *[0.4 / 7] * 4])).sqrt()
    anywhere = (0.08 / 8 * 0.4 / 7) ** 0.5
    whole = expected.sum(dim=1) + 8 * anywhere
    torch.testing.assert_close(looked.weights, expected / whole[:, None])
    torch.testing.assert_close(looked.anywhere, anywhere / whole)
    assert looked.noise_rate_estimate == pytest.approx(0.4)


def test_where_pairs_of_classes_are_told_a_label_counts_by_them(looked: Refract, labels: Tensor) -> None:
    classes = (labels[:, None] + torch.arange(5)) % CLASSES
    chances = torch.tensor([0.7, 0.1, 0.1, 0.05, 0.0]).repeat(COUNT, 1)
    nowhere = torch.zeros(COUNT)
    confusion = torch.full((CLASSES, CLASSES), 0.02)
    confusion[1, 0] = 0.3
    confusion[0, 0] = 0.5
    looked._believe(Judged(classes, chances, classes[:, 0], chances[:, 0], nowhere, 0.2, ByPair(confusion)))
    assert looked.trusted.all()
    first = int((labels == 0).nonzero()[0])
    expected = torch.tensor([0.7 * 0.5, 0.1 * 0.3, 0.1 * 0.02, 0.05 * 0.02, 0]).sqrt()
    torch.testing.assert_close(looked.weights[first], expected / expected.sum())
    assert not looked.anywhere.any()


def test_a_judgement_names_the_given_class_and_the_most_probable_others(labels: Tensor) -> None:
    """The fifth sample looks half like its class and half like another, and was given a third."""
    images = images_of(TRUTH)
    images[4] = (images[4] + images[6]) / 2
    labels[4] = 2
    judged = judge(normalize(images.flatten(1), dim=1), labels)
    assert torch.equal(judged.classes[:, 0], labels)
    assert (judged.chances[:, 1:-1] >= judged.chances[:, 2:]).all() and (judged.chances >= 0).all()
    assert (judged.chances.sum(dim=1) <= 1 + 1e-6).all()
    assert set(judged.classes[4, 1:3].tolist()) == {4, 6}
    for i in range(COUNT):
        listed = judged.classes[i][judged.chances[i] > 0].tolist()
        assert len(listed) == len(set(listed)), "no class twice"


def test_a_class_without_images_is_never_another_label(labels: Tensor) -> None:
    """Its images could not be read; samples far from everything are not nearer to it."""
    images = images_of(TRUTH)
    stranger = torch.arange(COUNT) % 10 == 9
    images[stranger] = 5 * draw(3, int(stranger.sum()))
    gone = (TRUTH == 3) | (labels == 3)
    judged = judge(normalize(images.flatten(1), dim=1) * ~gone[:, None], labels)
    assert gone.any() and not (judged.classes[~gone] == 3).any() and not (judged.suggested[~gone] == 3).any()
    assert (judged.clean[gone] == 1).all() and torch.equal(judged.suggested[gone], labels[gone])


@pytest.mark.parametrize("count", [2, 3, 5])
def test_of_few_classes_no_other_is_made_up(count: int) -> None:
    truth = torch.arange(COUNT) % count
    wrong = torch.arange(COUNT) % 7 == 0
    given = torch.where(wrong, (truth + 1) % count, truth)
    images = images_of(truth)
    method = begun(given)
    for _ in range(2):
        method.on_epoch_start(embed(images))
    assert torch.equal(method.trusted, ~wrong) and torch.equal(learned_as(method), truth)
    assert (method.weights[:, count:] == 0).all()
    if count == 2:
        assert torch.equal(method.targets[:, 1], 1 - given)
    loss = method(images, given, torch.arange(COUNT)).loss
    assert loss.isfinite() and loss > 0


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("count", [1, 2, 1000])
def test_weights_of_all_classes_sum_to_one(count: int, rate: float) -> None:
    chances = torch.tensor(
        [[1e-12] + [0.0] * 4, [1.0] + [0.0] * 4, [0.4, 0.3, 0.2, 0.15, 0.05], [0.1, 0.1, 0.0, 0.0, 0.0]]
    )
    nowhere = torch.tensor([0.0, 0.0, 0.1, 0.0])
    classes = torch.zeros(4, 5, dtype=torch.long)
    judged = Judged(classes, chances, chances[:, 0], chances[:, 0], nowhere, rate, AnyAlike(rate))
    weights, anywhere = weigh(judged, count)
    assert (weights >= 0).all() and (anywhere >= 0).all()
    torch.testing.assert_close(weights.sum(dim=1) + count * anywhere, torch.ones(4))
    assert weights[0].sum() < 1e-3, "none of the listed classes: of no class"
    assert anywhere[1] == anywhere[3] == 0


def test_the_loss_is_the_likelihood_of_the_labels(looked: Refract, labels: Tensor) -> None:
    batch = torch.arange(30, 50)
    images = images_of(TRUTH)[batch]
    looked.weights[34] = torch.tensor([0.3, 0.3, 0.1, 0.1, 0.0])
    looked.targets[34], looked.anywhere[34] = torch.tensor([2, 5, 6, 7, 2]), 0.2 / CLASSES
    loss, kept = looked(images, labels[batch], batch)
    assert torch.equal(kept, looked.trusted[batch])
    weights = normalize(looked.proxies()[0], dim=1)  # (C, D)
    cosines = looked.embedder(images) @ weights.T
    total = 0.0
    for i, row in zip(batch.tolist(), cosines, strict=True):
        likelihood = looked.anywhere[i]
        for label, weight in zip(looked.targets[i], looked.weights[i], strict=True):
            likelihood = likelihood + weight * (-cross_entropy(row / 0.1, label)).exp()
        total -= likelihood.log()
    torch.testing.assert_close(loss, total / len(batch))


def test_before_the_first_look_the_loss_is_that_of_the_softmax(labels: Tensor) -> None:
    method, images = begun(labels), images_of(TRUTH)
    cosines = method.embedder(images) @ normalize(method.proxies()[0], dim=1).T
    torch.testing.assert_close(
        method(images, labels, torch.arange(COUNT)).loss, cross_entropy(cosines / 0.1, labels)
    )


def test_a_batch_that_may_be_anything_has_no_gradient(looked: Refract, labels: Tensor) -> None:
    batch = torch.arange(10)
    looked.weights[batch], looked.anywhere[batch], looked.trusted[batch] = 0, 1 / CLASSES, False
    looked.zero_grad()
    loss, kept = looked(images_of(TRUTH)[batch], labels[batch], batch)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(CLASSES)) and not kept.any()
    assert not any(p.grad.any() for p in looked.parameters() if p.grad is not None)


def test_what_belongs_nowhere_weighs_little_in_any_class(labels: Tensor) -> None:
    """A tenth of the samples is of no class: many hardly count, and none counts much under another label."""
    images = images_of(TRUTH)
    stranger = torch.arange(COUNT) % 10 == 9
    images[stranger] = 5 * draw(3, int(stranger.sum()))
    method = begun(labels)
    for _ in range(2):
        method.on_epoch_start(embed(images))
    assert (method.weights[stranger].sum(dim=1) < 0.4).float().mean() > 0.4
    assert method.weights[stranger, 1:].max() < 0.2
    assert torch.equal(learned_as(method)[~stranger], TRUTH[~stranger])
    assert (method.weights[~stranger].amax(dim=1) > 20 * method.anywhere[~stranger]).all()


def test_what_is_saved_is_scaled_by_the_spread_of_the_believed(labels: Tensor) -> None:
    """Unreadable images, and labels that are not believed, have no part in it."""
    method = begun(labels)
    images = images_of(TRUTH)
    unread = torch.arange(COUNT) % 40 == 1
    embeddings = embed(images)(method.embedder)
    for _ in range(2):  # the second time, it looks
        method.on_epoch_start(lambda network: embeddings * ~unread[:, None])
    believed = method.trusted & ~unread
    assert COUNT / 2 < believed.sum() < 0.7 * COUNT and method.trusted[unread].all()
    centres = torch.stack([embeddings[believed & (k == labels)].mean(dim=0) for k in range(CLASSES)])
    residuals = (embeddings - centres[labels])[believed].double()
    covariance = residuals.T @ residuals / believed.sum()
    shrinkage = 0.1 + 0.9 * 16 / (16 + COUNT)  # towards a ball
    covariance = (1 - shrinkage) * covariance + shrinkage * covariance.diagonal().mean() * torch.eye(16)
    spread = torch.linalg.eigvalsh(covariance)
    assert spread[-1] / spread[0] > 2
    scaling = method.scaling.double()
    fourth = torch.linalg.inv(torch.linalg.matrix_power(scaling, 4))
    torch.testing.assert_close(fourth, covariance, rtol=1e-3, atol=1e-5)
    saved = embed(images)(method.networks()["model"])
    torch.testing.assert_close(saved, normalize(embeddings @ method.scaling, dim=1))


def test_the_scaled_embeddings_are_judged(labels: Tensor) -> None:
    """A look sees what the network is as the last one left it."""
    method, seen, saved = begun(labels), [], []
    images = images_of(TRUTH)

    def judged(embeddings: Tensor, *others: object) -> Judged:
        seen.append(embeddings)
        return judge(embeddings, *others)

    with mock.patch("prism_dml.methods.refract.judge", judged):
        for _ in range(3):
            saved.append(embed(images)(method.networks()["model"]))
            method.on_epoch_start(embed(images))
    torch.testing.assert_close(seen, saved[1:])
    assert not torch.allclose(seen[0], seen[1], atol=1e-2)


def test_a_doubtful_sample_is_drawn_as_its_most_probable_class_is_sure(labels: Tensor) -> None:
    method = begun(labels)
    first = method.draw_weights()
    assert torch.equal(first, torch.ones(COUNT))
    found: list[Judged] = []

    def judged(*arguments: object) -> Judged:
        found.append(judge(*arguments))
        return found[-1]

    with mock.patch("prism_dml.methods.refract.judge", judged):
        method.on_epoch_start(embed(images_of(TRUTH)))
        assert method.draw_weights() is first  # not the time for a look: the batches go on
        method.on_epoch_start(embed(images_of(TRUTH)))
    draws, doubtful = method.draw_weights(), found[0].clean < 0.5
    assert 0 < doubtful.sum() < COUNT and (draws[~doubtful] == 1).all()
    torch.testing.assert_close(draws[doubtful], found[0].chances.max(dim=1).values[doubtful].float() ** 4)


def test_what_cannot_be_read_takes_no_place_of_another(labels: Tensor) -> None:
    method = begun(labels)

    def embed_all(network: torch.nn.Module) -> Tensor:
        vectors = embed(images_of(TRUTH))(network)
        vectors[:5] = 0
        return vectors

    for _ in range(2):
        method.on_epoch_start(embed_all)
    assert method.trusted[:5].all() and not method.draw_weights()[:5].any()
    assert (method.draw_weights()[5:][method.trusted[5:]] == 1).all()
    method.on_epoch_start(embed(images_of(TRUTH)))  # they can be read again
    assert method.draw_weights()[:5].all()


def test_clean_labels_stay() -> None:
    method = begun(TRUTH)
    for _ in range(2):
        method.on_epoch_start(embed(images_of(TRUTH)))
    assert torch.equal(learned_as(method), TRUTH) and method.noise_rate_estimate < 0.02


def taught(method: Refract) -> Tensor:
    """Embeddings as they are saved, of a network that tells the classes apart: its class weights are their means."""
    raw = embed(images_of(TRUTH))(method.embedder)
    with torch.no_grad():
        method.class_weights.copy_(torch.stack([raw[k == TRUTH].mean(dim=0) for k in range(CLASSES)]))
    return embed(images_of(TRUTH))(method.networks()["model"])


def test_the_judge_compares_what_is_seen_with_the_network_and_without_it(labels: Tensor) -> None:
    """Where the blocks are known: those of SmallConvNet; elsewhere the embeddings, as all other tests here have it."""
    embedder = Embedder("small", 16, image_size=16, backbone_options={"widths": (4, 6)}).eval()
    method = build("refract", labels, embedder)
    method.look_every(epoch=1, steps=16)
    images, shown, asked = images_of(TRUTH).repeat_interleave(4, 2).repeat_interleave(4, 3), [], []
    images[:2] = 0  # what cannot be read is embedded as zeros
    readable = (images != 0).flatten(1).any(dim=1)[:, None]

    def judged(rows: Tensor, labels: Tensor, *options: int) -> Judged:
        shown.append(rows)
        return judge(rows, labels, *options)

    def embed_all(network: nn.Module) -> Tensor:
        asked.append(type(network))
        return embed(images)(network) * readable

    with mock.patch("prism_dml.methods.refract.judge", judged):
        for _ in range(3):
            method.on_epoch_start(embed_all)
        assert asked == [Patches, PatchFeatures, WithLevels, WithLevels], "without it, images are seen once"
        assert len(shown) == 2 and not torch.equal(method.scaling, torch.eye(16))
        seen = embed(images)(method.observer()) * readable
        assert seen.shape == (COUNT, 16 + 4 * (4 + 6))
        torch.testing.assert_close(seen[:, :16], embed(images)(method.networks()["model"]) * readable)
        order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))
        method.judge(seen[order], labels[order], order)
        selection, _ = method.judge(seen, labels, torch.arange(COUNT))
    features = embed(images)(PatchFeatures(embed(images)(Patches()) * readable)) * readable
    features = side_by_side(features, (LENGTH,))
    assert (features[:2] == 0).all()
    expected = side_by_side(seen[:, 16:], (16, 24), features)
    shown[2] = shown[2][order.argsort()]
    for rows in shown:
        torch.testing.assert_close(rows @ rows.T, expected @ expected.T, atol=2e-3, rtol=0)
    assert selection.keep[:2].all() and not selection.keep.all()


def watched(features: Tensor) -> tuple[list[nn.Module], list[Tensor], Callable[[nn.Module], Tensor], Any]:
    """Networks that are asked, rows that are judged, what asks the networks of these features, a patch of the judge."""
    asked: list[nn.Module] = []
    shown: list[Tensor] = []

    def embed_all(network: nn.Module) -> Tensor:
        asked.append(network)
        return embed(features)(network)

    def judged(rows: Tensor, *options: int) -> Judged:
        shown.append(rows)
        return judge(rows, *options)

    return asked, shown, embed_all, mock.patch("prism_dml.methods.refract.judge", judged)


@pytest.mark.parametrize("epochs, beside", [(KNOWN_BY_HEART, True), (KNOWN_BY_HEART - 1, False)])
def test_what_a_frozen_backbone_makes_of_images_is_judged_beside_the_embeddings(
    labels: Tensor, epochs: int, beside: bool
) -> None:
    """In a run that is long enough to learn labels by heart."""
    embedder = Embedder("small", 16, image_size=16, backbone_options={"widths": (4, 6)}).eval()
    with unknown_blocks():
        method = build("refract", labels, embedder.freeze())
        method.look_every(epoch=1, steps=epochs)
        images = images_of(TRUTH).repeat_interleave(4, 2).repeat_interleave(4, 3)
        features = embedder.represent(images)  # (COUNT, 6)
        asked, shown, embed_all, judging = watched(features)
        with judging:
            for _ in range(3):
                method.on_epoch_start(embed_all)
            assert asked == [embedder.backbone] * beside + [embedder] * 2
            order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))
            seen = embed(features)(method.observer())
            assert seen.shape == (COUNT, 16)
            method.judge(seen[order], labels[order], order)
    unlearned = side_by_side(features, (6,))
    assert unlearned.norm(dim=1).allclose(torch.ones(COUNT)) and len(shown) == 3
    rows = shown[2][order.argsort()]
    expected = (seen @ seen.T + unlearned @ unlearned.T) / 2 if beside else seen @ seen.T
    torch.testing.assert_close(rows @ rows.T, expected, atol=2e-3, rtol=0)
    assert shown[0].shape[1] == shown[1].shape[1] == (22 if beside else 16)


def test_a_short_run_on_a_frozen_backbone_is_judged_by_its_features_before_the_first_step(
    labels: Tensor,
) -> None:
    features = 5 * torch.randn(CLASSES, 6, generator=torch.Generator().manual_seed(1))[TRUTH]
    features += 0.1 * torch.randn(COUNT, 6, generator=torch.Generator().manual_seed(2))
    embedder = Embedder("small", 16, image_size=16, backbone_options={"widths": (4, 6)}).eval().freeze()
    asked, shown, embed_all, judging = watched(features)
    with unknown_blocks():
        method = build("refract", labels, embedder)
        part = method.look_every(epoch=9, steps=16)
        with judging:
            method.on_epoch_start(embed_all)
            assert torch.equal(~method.decided(), labels != TRUTH)
            for _ in range(part, 16, part):
                method.on_epoch_start(embed_all)
    assert asked == [embedder.backbone] and len(shown) == 1
    expected = side_by_side(features, (6,))
    torch.testing.assert_close(shown[0] @ shown[0].T, expected @ expected.T, atol=2e-3, rtol=0)


@pytest.mark.parametrize("each, weight", [(INSTANCE, INSTANCE * EACH), (1.0, MOST)])
def test_images_are_told_apart_by_their_patch_features(labels: Tensor, each: float, weight: float) -> None:
    """Beside their labels, at first most; through the backbone, and not through the head."""
    embedder = Embedder("small", 16, image_size=16, backbone_options={"widths": (4, 6)}).eval()
    with mock.patch("prism_dml.methods.refract.INSTANCE", each):
        method = build("refract", labels, embedder)
    method.look_every(epoch=1, steps=16)
    images = images_of(TRUTH).repeat_interleave(4, 2).repeat_interleave(4, 3)
    method.on_epoch_start(embed(images))
    assert method.unlearned.any() and method.trusted.all()
    batch = torch.arange(20)
    loss, kept = method(images[batch], labels[batch], batch)
    assert torch.equal(kept, method.trusted[batch])
    by_label = -log_softmax(WarmClassifier(embedder, method.class_weights)(images[batch]), dim=1)
    by_label = by_label.gather(1, labels[batch, None]).mean()
    projected = embedder.represent(images[batch]) @ method.patch_projection.T
    told_apart = method.instance_loss(projected, method.unlearned[batch])
    torch.testing.assert_close(loss, by_label + weight * told_apart)
    method.parts.fill_(16)  # the last of 16
    torch.testing.assert_close(
        method(images[batch], labels[batch], batch).loss, by_label + weight * told_apart / 16
    )
    (loss - by_label).backward()
    assert all(parameter.grad.any() for parameter in embedder.backbone.parameters())
    assert method.patch_projection.grad.any()
    torch.testing.assert_close(embedder.head.weight.grad, torch.zeros(16, 6), atol=1e-6, rtol=0)
    assert not any(parameter is method.patch_projection for parameter in method.proxies())


def test_of_few_large_classes_labels_are_all_that_is_learned() -> None:
    """Beside 2,500 images of ten classes; what is compared has the patch features, too."""
    embedder = Embedder("small", 16, image_size=16, backbone_options={"widths": (4, 6)})
    labels = torch.arange(2500) % 10
    assert hasattr(build("refract", labels[:2499], embedder), "patch_projection")
    method = build("refract", labels, embedder)
    method.look_every(epoch=1, steps=16)
    assert not hasattr(method, "patch_projection") and method.unlearned.shape[1] > 0
    method.unlearned.copy_(torch.randn(method.unlearned.shape))
    batch = torch.arange(20)
    images = torch.randn(20, 3, 16, 16)
    by_label = -log_softmax(WarmClassifier(embedder, method.class_weights)(images), dim=1)
    torch.testing.assert_close(
        method(images, labels[:20], batch).loss, by_label.gather(1, labels[:20, None]).mean()
    )


@pytest.mark.parametrize("count, believed", [(2499, 4), (2500, 2)])
def test_of_few_large_classes_what_is_surely_right_is_believed(count: int, believed: int) -> None:
    method = build("refract", torch.arange(count) % 10, Linear(dim=16))
    classes = (method.targets[:, :1] + torch.arange(5)) % 10
    chances, nothing = torch.zeros(count, 5), torch.zeros(count)
    chances[:5, 0] = torch.tensor([1.0, 0.81, 0.79, 0.51, 0.49])
    method._believe(Judged(classes, chances, classes[:, 1], chances[:, 1], nothing, 0.4, AnyAlike(0.4)))
    assert method.trusted.nonzero().squeeze(1).tolist() == list(range(believed))


def test_in_a_run_of_few_epochs_there_is_one_look() -> None:
    """Before the first step. Where blocks are not compared, it is beside the embeddings that are judged in the end."""
    embedder = Embedder("small", 16, image_size=16, backbone_options={"widths": (4, 6)}).eval()
    images = torch.randn(2500, 3, 16, 16)
    for classes, epoch, observer in ((10, 60, Embedder), (50, 60, WithLevels), (50, 201, Embedder)):
        labels = torch.arange(2500) % classes
        method = build("refract", labels, embedder)
        part, asked = method.look_every(epoch=epoch, steps=100), []

        def embed_all(network: nn.Module, asked: list[type] = asked) -> Tensor:
            asked.append(type(network))
            return embed(images)(network)

        shown: list[Tensor] = []
        judged = mock.patch(
            "prism_dml.methods.refract.judge", lambda rows, *of, to=shown: to.append(rows) or judge(rows, *of)
        )
        with judged:
            for _ in range(0, 100, part):
                method.on_epoch_start(embed_all)
        # Where it is not compared later, it must not take longer than a look at the embeddings.
        assert [rows.shape[1] for rows in shown] == [128 if observer is Embedder else 256]
        assert asked == [Patches, PatchFeatures] and isinstance(method.observer(), observer)
        shown.clear()
        seen = embed(images)(method.observer())
        with judged:
            method.judge(seen, labels, torch.arange(2500))
        if observer is Embedder:
            before = method.unlearned.float()
            expected = (seen @ seen.T + before @ before.T) / 2
            torch.testing.assert_close(shown[0] @ shown[0].T, expected, atol=2e-3, rtol=0)
        else:
            assert shown[0].shape == (2500, 256)


@pytest.mark.parametrize("count", [110, 200, 300])
def test_a_short_run_of_few_images_finds_as_much_as_it_has_room_for(count: int) -> None:
    """Two classes of so many images are large enough for pairs to be learned."""
    embedder = Embedder("small", 16, image_size=16, backbone_options={"widths": (4, 6)}).eval()
    method = build("refract", torch.arange(count) % 2, embedder)
    method.look_every(epoch=9, steps=16)
    method.on_epoch_start(embed(draw(0, count).repeat_interleave(4, 2).repeat_interleave(4, 3)))
    assert (method.unlearned != 0).any(dim=1).all() and not hasattr(method, "patch_projection")


def test_a_short_run_learns_from_its_first_step_on_what_the_images_tell(labels: Tensor) -> None:
    embedder = Embedder("small", 16, image_size=16, backbone_options={"widths": (4, 6)}).eval()
    method = build("refract", labels, embedder)
    images = images_of(TRUTH).repeat_interleave(4, 2).repeat_interleave(4, 3)
    for epoch in (9, 8):  # 16 steps are less than two epochs, or two
        method.look_every(epoch=epoch, steps=16)
        method.on_epoch_start(embed(images))
        wrong, judged = labels != TRUTH, epoch == 9
        assert torch.equal(~method.decided(), wrong & judged)
        assert (method.draw_weights()[wrong] < 1).all() == judged and (
            method.draw_weights()[~wrong] == 1
        ).all()
        assert torch.equal(method.scaling, torch.eye(16))
        method = build("refract", labels, embedder)
    images[:3] = 0
    method.look_every(epoch=9, steps=16)
    method.on_epoch_start(
        lambda network: embed(images)(network) * (images != 0).flatten(1).any(dim=1)[:, None]
    )
    assert method.decided()[:3].all() and method.draw_weights()[:4].tolist()[:3] == [0, 0, 0]


def test_where_no_image_can_be_read_nothing_is_seen(labels: Tensor) -> None:
    embedder = Embedder("small", 16, image_size=16, backbone_options={"widths": (4, 6)}).eval()
    method = build("refract", labels, embedder)
    method.look_every(epoch=1, steps=16)
    asked = []
    for _ in range(2):
        method.on_epoch_start(
            lambda network: asked.append(type(network)) or 0 * embed(torch.randn(COUNT, 3, 16, 16))(network)
        )
    assert asked == [Patches, WithLevels]
    assert method.trusted.all() and not method.unlearned.any() and method.noise_rate_estimate == 0


def test_what_could_not_be_embedded_is_believed(looked: Refract, labels: Tensor) -> None:
    vectors = taught(looked)
    vectors[:3] = 0
    selection, rate = looked.judge(vectors, labels, torch.arange(COUNT))
    assert selection.keep[:3].all() and torch.equal(selection.suggested_label[:3], labels[:3])
    assert (selection.keep == (labels == TRUTH))[3:].float().mean() > 0.95
    assert (selection.suggested_label == TRUTH)[3:].float().mean() > 0.95
    assert ((selection.margin > 0) == selection.keep).all() and rate == pytest.approx(1 / 3, abs=0.03)
    selection, rate = looked.judge(torch.zeros_like(vectors), labels, torch.arange(COUNT))
    assert selection.keep.all() and rate == 0


def test_the_network_has_a_say_in_what_is_handed_over(looked: Refract, labels: Tensor) -> None:
    """The score's log-odds are the mean of the judge's and of the network's, which sees what it was trained as."""
    vectors, index = taught(looked), torch.arange(COUNT)
    judged = judge(vectors, labels)
    weights = normalize(looked.class_weights.detach(), dim=1)
    chances = (embed(images_of(TRUTH))(looked.embedder) @ weights.T / 0.1).softmax(dim=1)
    rate = judged.rate
    seen = torch.full((CLASSES, CLASSES), rate / (CLASSES - 1)).fill_diagonal_(1 - rate)
    own = chances * seen[:, labels].T
    own = (own / own.sum(dim=1, keepdim=True)).gather(1, labels[:, None]).squeeze(1)
    selection, found = looked.judge(vectors, labels, index)
    expected = (torch.logit(judged.clean, 1e-7) + torch.logit(own, 1e-7)) / 2
    torch.testing.assert_close(selection.clean_probability, expected.sigmoid(), rtol=1e-3, atol=1e-5)
    assert found == pytest.approx(1 - float(selection.clean_probability.mean()), abs=1e-6)
    same, chance = selection.suggested_label == labels, selection.suggested_probability
    assert same.any() and not same.all() and chance is not None
    torch.testing.assert_close(chance[same], selection.clean_probability[same])
    other = chance[~same] + selection.clean_probability[~same]
    assert (other <= 1 + 1e-5).all() and other.mean() > 0.9
    with mock.patch("prism_dml.methods.second_opinion._LOGITS", 7 * CLASSES):  # a few samples at a time
        again, _ = looked.judge(vectors, labels, index)
    torch.testing.assert_close(again.clean_probability, selection.clean_probability)
    assert torch.equal(again.suggested_label, selection.suggested_label)


def test_what_the_judge_takes_for_another_class_is_suggested_to_be_one(
    looked: Refract, labels: Tensor
) -> None:
    vectors = taught(looked)
    judged = judge(vectors, labels)
    chances = torch.zeros_like(judged.chances)
    chances[:, 0], chances[:, 1:3] = 0.4, 0.2  # the given class is the likeliest one, yet not believed
    other = judged._replace(chances=chances, suggested=judged.classes[:, 1])
    with (
        mock.patch("prism_dml.methods.refract.judge", lambda *_: other),
        mock.patch.object(looked, "_sees", lambda *_: chances),
    ):
        selection, _ = looked.judge(vectors, labels, torch.arange(COUNT))
    wrong = labels != TRUTH
    assert not selection.keep.any() and torch.equal(selection.suggested_label[wrong], TRUTH[wrong])
    assert torch.equal(selection.suggested_label[~wrong], labels[~wrong]) and (selection.margin < 0).all()


def test_a_network_that_knows_better_settles_what_the_judge_does_not_know() -> None:
    first = torch.tensor([[0.5, 0.3, 0.1], [0.5, 0.3, 0.1], [1.0, 0.0, 0.0], [0.2, 0.0, 0.0]])
    second = torch.tensor([[0.1, 0.2, 0.7], [0.9, 0.1, 0.0], [1.0, 0.0, 0.0], [0.2, 0.8, 0.0]])
    pooled = pool(first, second)
    torch.testing.assert_close(pooled[:2, 0], torch.tensor([0.25, 0.75]))  # odds of 1/9 and 9, by 1
    others = torch.tensor([0.3 * 0.2, 0.1 * 0.7]).sqrt()
    torch.testing.assert_close(
        pooled[0, 1:], 0.75 * 0.8 * others / others.sum()
    )  # a fifth of the rest is of no class
    torch.testing.assert_close(pooled[1, 1:], torch.tensor([0.25 * 0.8, 0.0]), rtol=1e-3, atol=1e-3)
    neither = pool(torch.tensor([[0.4, 0.4, 0.2]]), torch.tensor([[0.4, 0.0, 0.0]]))
    assert neither[0, 1] > neither[0, 2] > 0.1, "where the network knows of no other, the judge's word stands"
    torch.testing.assert_close(pooled[2:], torch.tensor([[1.0, 0, 0], [0.2, 0, 0]]))
    assert pooled.isfinite().all() and (pooled.sum(dim=1) <= 1 + 1e-6).all()


@pytest.mark.parametrize("confused", [False, True])
def test_a_network_is_asked_by_the_rule_of_bayes(confused: bool) -> None:
    logits, classes = draw(4, 6).flatten(1)[:, :5], torch.tensor([[2, 0, 4]] * 6)
    pairs = torch.full((5, 5), 0.3 / 4).fill_diagonal_(0.7)
    if confused:
        pairs = (torch.eye(5) + torch.arange(25).view(5, 5) / 20).softmax(dim=1)
    found = given_the_label(logits, classes, ByPair(pairs) if confused else AnyAlike(0.3))
    chances = logits.softmax(dim=1)
    if confused:  # a class that no label was seen of
        fewer = given_the_label(logits, classes % 4, ByPair(pairs[:4, :4]))
        assert fewer.isfinite().all() and ((fewer >= 0) & (fewer <= 1)).all()
    for i in range(6):
        joint = [chances[i, k] * pairs[k, 2] for k in range(5)]
        torch.testing.assert_close(found[i], torch.stack([joint[k] for k in (2, 0, 4)]) / sum(joint))


def test_the_judgement_is_remembered(looked: Refract, labels: Tensor) -> None:
    other = begun(labels)
    other.load_state_dict(looked.state_dict())
    batch, images = torch.arange(20), images_of(TRUTH)[:20]
    for a, b in zip(looked(images, labels[batch], batch), other(images, labels[batch], batch), strict=True):
        assert torch.equal(a, b)
    assert other.noise_rate_estimate == looked.noise_rate_estimate
