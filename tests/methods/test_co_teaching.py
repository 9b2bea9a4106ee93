import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from .stand_in import INDEX, LABELS, B, C, Linear, build, draw, embed_all

NAMES = ["co-teaching", "co-teaching-plus", "co-teaching-t"]


def at_epoch(method, begun: int):
    for _ in range(begun):
        method.on_epoch_start(embed_all)
    return method


def fixed_logits(method, logits: list[Tensor]) -> None:
    """Let the two classifiers say what a test wants."""
    answers = iter(logits)
    method.classifier = lambda *parts: lambda images: next(answers)


def logits_of(losses: list[float], predicted: list[int], labels: Tensor) -> Tensor:
    """Two-class logits whose cross-entropy with the labels has the order of the given losses."""
    logits = torch.zeros(len(losses), C)
    logits[torch.arange(len(losses)), labels] = -torch.tensor(losses)
    logits[torch.arange(len(losses)), torch.tensor(predicted)] += 20.0
    return logits


def chosen(losses: Tensor, number: int, among: list[int]) -> set[int]:
    return set(sorted(among, key=lambda i: float(losses[i]))[:number])


def test_worked_example() -> None:
    """Ten samples, rate 0.4, fully risen: each network learns from the six of smallest loss for the other."""
    method = at_epoch(build("co-teaching", noise_rate=0.4, rise_epochs=1), 2)
    first = torch.tensor([0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.6, 0.5, 1.0])
    second = torch.tensor([0.9, 0.1, 0.8, 0.2, 0.7, 0.3, 0.6, 0.4, 1.0, 0.5])
    labels = torch.zeros(B, dtype=torch.long)

    def logits(losses: Tensor) -> Tensor:
        """Two classes with p(label) = e^-loss, the others impossible."""
        rest = (-torch.expm1(-losses)).log()
        return torch.cat([-losses[:, None], rest[:, None], torch.full((B, C - 2), -90.0)], dim=1)

    fixed_logits(method, [logits(first), logits(second)])
    loss, kept = method(draw(0), labels, INDEX)
    # smallest for the second: samples 1, 3, 5, 7, 9, 6; for the first: 0, 2, 4, 6, 8, 7
    assert kept.nonzero().flatten().tolist() == [1, 3, 5, 6, 7, 9]
    by_first = first[[1, 3, 5, 6, 7, 9]].mean()
    by_second = second[[0, 2, 4, 6, 7, 8]].mean()
    assert loss.item() == pytest.approx(float(by_first + by_second), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_each_learns_from_the_others_choice(name: str) -> None:
    method, images = at_epoch(build(name, noise_rate=0.5, rise_epochs=2), 3), draw(1)
    logits = []
    for network, weights in zip((method.embedder, method.peer), method.class_weights, strict=True):
        features = images.flatten(1) @ network.weight
        if name == "co-teaching-t":
            logits.append(normalize(features, dim=1) @ normalize(weights, dim=1).T / 0.05)
        else:
            logits.append(features @ weights.T)
    losses = [cross_entropy(each, LABELS, reduction="none") for each in logits]
    among = list(range(B))
    if name == "co-teaching-plus":
        among = [i for i in among if logits[0][i].argmax() != logits[1][i].argmax()]
        assert 1 < len(among) < B
    number = len(among) - len(among) // 2
    choices = [chosen(each.detach(), number, among) for each in losses]
    assert choices[0] != choices[1]
    expected = sum(losses[0][i] for i in choices[1]) + sum(losses[1][i] for i in choices[0])
    loss, kept = method(images, LABELS, INDEX)
    assert set(kept.nonzero().flatten().tolist()) == choices[1]
    assert loss.item() == pytest.approx(float(expected.detach()) / number, rel=1e-5)
    loss.backward()
    alone = torch.autograd.grad(sum(losses[0][i] for i in choices[1]) / number, method.embedder.weight)[0]
    torch.testing.assert_close(method.embedder.weight.grad, alone)


def test_plus_learns_from_all_where_the_two_agree() -> None:
    twin = Linear()
    twin.sibling = lambda: Linear()
    method = at_epoch(build("co-teaching-plus", embedder=twin, noise_rate=0.5, rise_epochs=1), 2)
    method.class_weights[1].data.copy_(method.class_weights[0])
    assert method(draw(1), LABELS, INDEX).kept.sum() == B // 2


def test_plus_never_learns_from_what_the_two_agree_on_if_they_differ_anywhere() -> None:
    method = at_epoch(build("co-teaching-plus", noise_rate=0.9, rise_epochs=1), 2)
    predicted = [0] * B
    answers = [logits_of([0.0] * B, predicted, LABELS), logits_of([0.0] * B, [1, *predicted[1:]], LABELS)]
    fixed_logits(method, answers)
    assert method(draw(0), LABELS, INDEX).kept.nonzero().flatten().tolist() == [0], "one is never left out"


def test_plus_is_plain_while_the_share_rises() -> None:
    plain, plus = (at_epoch(build(name, rise_epochs=4), 4) for name in NAMES[:2])
    assert plain(draw(1), LABELS, INDEX).loss == plus(draw(1), LABELS, INDEX).loss
    at_epoch(plain, 1), at_epoch(plus, 1)
    assert plain(draw(1), LABELS, INDEX).loss != plus(draw(1), LABELS, INDEX).loss


def test_the_share_rises_from_nothing() -> None:
    method, left_out = build("co-teaching", noise_rate=0.8, rise_epochs=4), []
    for _ in range(7):
        method.on_epoch_start(embed_all)
        left_out.append(B - int(method(draw(0), LABELS, INDEX).kept.sum()))
    assert left_out == [0, 2, 4, 6, 8, 8, 8]


def test_the_epoch_is_remembered() -> None:
    method = at_epoch(build("co-teaching", noise_rate=0.8, rise_epochs=4), 4)
    other = build("co-teaching", noise_rate=0.8, rise_epochs=4)
    other.load_state_dict(method.state_dict())
    assert torch.equal(method(draw(0), LABELS, INDEX).kept, other(draw(0), LABELS, INDEX).kept)


@pytest.mark.parametrize("name", NAMES)
def test_needs_the_noise_rate(name: str) -> None:
    with pytest.raises(ValueError, match=f'"{name}" cannot estimate the noise rate: .*--noise-rate'):
        build(name, noise_rate="auto")


@pytest.mark.parametrize("epoch", [10, 626, 782])
@pytest.mark.parametrize("steps", [1, 3, 100, 500, 1000, 4000, 20000])
def test_the_share_rises_by_epochs_or_within_half_of_a_short_run(steps: int, epoch: int) -> None:
    method = build("co-teaching", noise_rate=0.8, rise_epochs=10)
    part, shares = method.look_every(epoch, steps), []
    for step in range(steps):
        if step % part == 0:
            method.on_epoch_start(embed_all)
        shares.append(float(((method.epochs - 1) / method.rise_epochs).clamp(0, 1)))
    assert shares[0] == 0 and shares == sorted(shares)
    if steps > 20 * epoch:
        assert part == epoch and shares.index(1) == 10 * epoch
    elif steps > 1:
        assert abs(shares.index(1) - steps / 2) <= 1
        assert min(len(set(shares)) - 1, 10) == min(-(-steps // 2), 10)  # as gradually as can be
