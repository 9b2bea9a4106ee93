import pytest
import torch

from prism_dml.losses import PrototypeLoss

from .stand_in import INDEX, LABELS, B, C, build, draw, step


def test_trusted_samples_by_label_and_the_others_by_prototypes() -> None:
    plain, method = (
        build(name, noise_rate=0.4, threshold="top-r") for name in ("prism-mcl", "prism-prototypes")
    )
    for each in (plain, method):
        step(each, draw(0))
    method.load_state_dict(plain.state_dict())
    images, bank = draw(1), method.bank
    kept = plain.selector(plain.embedder(images).detach(), LABELS, INDEX).keep
    assert 0 < kept.sum() < B
    rest = method.embedder(images)[~kept]
    method.attraction = PrototypeLoss(scale=3.0)  # at the usual scale the loss of so few classes vanishes
    attraction = method.attraction(rest, INDEX[~kept], bank.embeddings, bank.labels, bank.index, bank.centres)
    loss, chosen = method(images, LABELS, INDEX)
    assert torch.equal(chosen, kept)
    assert loss == plain(images, LABELS, INDEX).loss + attraction and attraction > 0


def test_a_memory_that_is_shared_out_does_not_do() -> None:
    with pytest.raises(ValueError, match='shard_bank: "prism-prototypes" looks for neighbours'):
        build("prism-prototypes", shard_bank=True)


def test_the_label_of_a_rejected_sample_does_not_matter() -> None:
    method = build("prism-prototypes", noise_rate=0.4, threshold="top-r")
    step(method, draw(0))
    images = draw(1)
    loss, kept = method(images, LABELS, INDEX)
    method._trusted = lambda *arguments: kept
    changed = torch.where(kept, LABELS, (LABELS + 1) % C)
    assert not kept.all() and method(images, changed, INDEX).loss == loss


def test_without_rejected_samples_it_is_prism() -> None:
    methods = [build(name, noise_rate=0.0) for name in ("prism-mcl", "prism-prototypes")]
    for number in range(3):
        for method in methods:
            assert step(method, draw(number)).all()
    torch.testing.assert_close(methods[0].embedder.weight, methods[1].embedder.weight)
