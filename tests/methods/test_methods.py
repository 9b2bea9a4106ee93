import re
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from prism_dml.losses.contrastive import MemoryContrastiveLoss
from prism_dml.methods.base import TrainingSet
from prism_dml.methods.config import MethodConfig
from prism_dml.methods.registry import METHODS, find_method

from .stand_in import INDEX, LABELS, B, C, Linear, N, build, draw, embed_all, step

WITH_PROXIES = [
    "co-teaching-t", "soft-triple", "prism-soft-triple", "nsoftmax", "proxy-nca", "proxy-anchor", "sub-centre-arcface",
    "refract", "refract-oracle",
]  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_and_gives_a_gradient_to_the_network(name: str) -> None:
    method = build(name)
    method.on_round_start(method.rounds - 1, embed_all)
    method.on_epoch_start(embed_all)
    for number in range(3):
        kept = step(method, draw(number))
        assert kept.shape == (B,) and kept.dtype == torch.bool
        assert method.embedder.weight.grad.abs().sum() > 0
    assert method.summary and method.name == name
    if not method.selects:
        assert kept.all() and method.noise_rate_estimate is None


@pytest.mark.parametrize(
    "name, similarity",
    [("prism-mcl", "centre"), ("prism-mcl", "vmf"), ("prism-soft-triple", "centre"),
     ("prism-soft-triple", "exact"), ("prism-soft-triple", "proxy")],
)  # fmt: skip
def test_a_rejected_sample_changes_neither_gradient_nor_bank(
    name: str, similarity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same step with the rejected images swapped for others must be the same step."""

    proxies = [torch.zeros(B, C)] if similarity == "proxy" else []

    def learned(change: bool) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        method = build(name, similarity=similarity, noise_rate=0.4, threshold="top-r")
        for number in range(3):
            step(method, draw(number))
        images = draw(9)
        method.zero_grad()
        loss, kept = method(images, LABELS, INDEX)
        if change:
            images = torch.where(kept[:, None, None, None], images, images.flip(0))
            decision = replace(method.selector(method.embedder(images), LABELS, INDEX, *proxies), keep=kept)
            monkeypatch.setattr(method.selector, "forward", lambda *arguments: decision)
            loss, kept = method(images, LABELS, INDEX)
        loss.backward()
        gradients = [p.grad.clone() for p in method.parameters()]
        method.on_update()
        return gradients, loss.detach(), kept, method.selector.bank.embeddings.clone()

    plain, changed = learned(False), learned(True)
    assert 0 < plain[2].sum() < B and torch.equal(plain[2], changed[2])
    assert torch.equal(plain[1], changed[1]) and torch.equal(plain[3], changed[3])
    for one, other in zip(plain[0], changed[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["prism-mcl", "prism-soft-triple", "prism-prototypes"])
def test_only_what_was_kept_is_remembered_and_only_after_the_update(name: str) -> None:
    method = build(name, noise_rate=0.5, threshold="top-r")
    step(method, draw(0))
    images = draw(1)
    embeddings = method.embedder(images).detach()
    kept = method(images, LABELS, INDEX).kept
    bank = method.selector.bank
    assert len(bank) == B, "the batch must not judge itself"
    method.on_update()
    assert 0 < kept.sum() < B and len(bank) == B + kept.sum()
    rows = slice(B, B + int(kept.sum()))
    torch.testing.assert_close(bank.embeddings[rows], embeddings[kept])
    assert torch.equal(bank.labels[rows], LABELS[kept]) and torch.equal(bank.index[rows], INDEX[kept])


@pytest.mark.parametrize("name", ["prism-mcl", "prism-soft-triple"])
def test_all_rejected_is_a_loss_of_zero(name: str) -> None:
    method = build(name, noise_rate=0.2)
    step(method, draw(0))
    method.zero_grad()
    method.selector.rule.quantiles.fill_(2.0)
    loss, kept = method(draw(1), LABELS, INDEX)
    assert not kept.any() and loss == 0
    loss.backward()
    assert all(p.grad is None or (p.grad == 0).all() for p in method.parameters())


@pytest.mark.parametrize("name", ["mcl", "oracle"])
def test_mcl_remembers_everything_up_to_its_size(name: str) -> None:
    method = build(name, bank_size=14)
    seen = []
    for number in range(3):
        seen.append((method.embedder(draw(number)).detach(), LABELS, INDEX + number))
        step(method, draw(number), LABELS, INDEX + number)
    embeddings, labels, index = (torch.cat(part)[-14:] for part in zip(*seen, strict=True))
    slots = torch.arange(3 * B - 14, 3 * B) % 14
    torch.testing.assert_close(method.bank.embeddings[slots], embeddings)
    assert torch.equal(method.bank.labels[slots], labels) and torch.equal(method.bank.index[slots], index)


def test_the_bank_is_as_large_as_the_training_set() -> None:
    assert build("mcl").bank.size == build("prism-mcl").bank.size == N
    assert build("prism-mcl", bank_size=7).bank.size == 7


def test_mcl_is_learned_from_the_bank_before_the_batch_enters_it_and_never_from_a_samples_own_past() -> None:
    method = build("mcl", margin=0.2, bank_weight=0.7)
    step(method, draw(0))
    images, bank = draw(1), method.bank
    criterion = MemoryContrastiveLoss(0.2, 0.7)
    expected = criterion(method.embedder(images), LABELS, bank.embeddings, bank.labels, INDEX, bank.index)
    with_own_past = criterion(method.embedder(images), LABELS, bank.embeddings, bank.labels)
    assert method(images, LABELS, INDEX).loss == expected != with_own_past


def test_prism_learns_from_the_memory_that_judges() -> None:
    method = build("prism-mcl")
    assert method.bank is method.selector.bank
    step(method, draw(0))
    other = build("prism-mcl")
    other.load_state_dict(method.state_dict())
    assert other.bank is other.selector.bank and len(other.bank) == len(method.bank) == B


def test_without_noise_prism_is_its_plain_method() -> None:
    for plain, robust in (("mcl", "prism-mcl"), ("soft-triple", "prism-soft-triple")):
        methods = build(plain), build(robust, noise_rate=0.0)
        for number in range(4):
            for method in methods:
                step(method, draw(number))
        torch.testing.assert_close(methods[0].embedder.weight, methods[1].embedder.weight)


@pytest.mark.parametrize("name", METHODS)
def test_all_that_is_trained_is_a_network_a_classifier_or_a_proxy(name: str) -> None:
    method = build(name)
    proxies = method.proxies()
    assert bool(proxies) == (name in WITH_PROXIES)
    others = [network.weight for name, network in method.networks().items() if name != "model"]
    networks = [method.embedder.weight, *others]
    classifiers = [] if proxies else list(getattr(method, "class_weights", []))
    assert {id(p) for p in method.parameters()} == {id(p) for p in [*proxies, *networks, *classifiers]}
    assert bool(classifiers) == (name in ("co-teaching", "co-teaching-plus", "f-correction"))


@pytest.mark.parametrize("name", METHODS)
def test_two_networks_are_saved_and_start_apart(name: str) -> None:
    method = build(name)
    networks = method.networks()
    if name.startswith("refract"):  # it scales what the embedder gives, by the looks that there were
        torch.testing.assert_close(networks["model"](draw(0)), method.embedder(draw(0)))
    else:
        assert networks["model"] is method.embedder
    two = name.startswith("co-teaching") or name == "f-correction"
    assert list(networks) == (["model", "peer"] if two else ["model"])
    if two:
        assert not torch.equal(networks["model"].weight, networks["peer"].weight)
        assert not torch.equal(*method.class_weights)


@pytest.mark.parametrize("name", METHODS)
def test_building_leaves_the_random_state_and_repeats_itself(name: str) -> None:
    state = torch.get_rng_state()
    one, other = build(name), build(name)
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_proxy_similarity_judges_by_the_centres_and_needs_no_memory() -> None:
    method = build("prism-soft-triple", similarity="proxy", noise_rate=0.5, threshold="top-r")
    images = draw(0)
    embeddings = method.embedder(images).detach()
    probability = method.criterion.class_similarities(embeddings).softmax(1)[torch.arange(B), LABELS]
    kept = method(images, LABELS, INDEX).kept
    assert kept.tolist() == (probability > probability.sort().values[B // 2 - 1]).tolist()
    selection, rate = method.judge(embeddings, LABELS, INDEX)
    assert torch.equal(selection.keep, kept) and rate == 0.5
    torch.testing.assert_close(selection.clean_probability, probability)


def test_proxy_similarity_needs_proxies() -> None:
    with pytest.raises(ValueError, match="proxies"):
        build("prism-mcl", similarity="proxy")


@pytest.mark.parametrize("name", ["prism-mcl", "prism-soft-triple", "prism-prototypes"])
def test_selectors_judge_and_report_their_rate(name: str) -> None:
    method = build(name, noise_rate=0.3)
    step(method, draw(0))
    with torch.no_grad():
        selection, rate = method.judge(method.embedder(draw(0)), LABELS, INDEX)
    assert selection.keep.shape == (B,) and rate == pytest.approx(0.3)
    assert method.noise_rate_estimate == pytest.approx(0.3)


def test_only_the_oracle_asks_for_the_truth() -> None:
    assert [name for name, method in METHODS.items() if method.clean_only] == ["oracle", "refract-oracle"]


@pytest.mark.parametrize(
    "name, hint", [("prism-mlc", "did you mean prism-mcl"), ("zzz", "there are prism-mcl")]
)
def test_unknown_methods(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(hint)):
        find_method(name)


@pytest.mark.parametrize(
    "options",
    [{"noise_rate": 1.0}, {"noise_rate": -0.1}, {"window": 0}, {"selection_warmup": -1}, {"bank_weight": -1.0},
     {"rise_epochs": 0}, {"bank_size": 0}, {"margin": 1.0}, {"margin": -1.1}, {"temperature": 0.0}],
)  # fmt: skip
def test_bad_settings(options) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        MethodConfig(**options)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_which_settings_it_reads(name: str) -> None:
    class Watched(MethodConfig):
        def __getattribute__(self, setting: str) -> Any:
            seen.add(setting)
            return super().__getattribute__(setting)

    seen: set[str] = set()
    config = Watched(method=name, noise_rate="auto" if name.startswith("refract") else 0.3)
    seen.clear()
    find_method(name)(Linear(), TrainingSet(torch.arange(N) % C, C), config)
    assert seen & {field.name for field in fields(MethodConfig)} == find_method(name).reads
