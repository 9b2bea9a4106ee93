"""PRISM as a whole, against method.md section 2 written down in plain loops."""

import copy
import math
from dataclasses import astuple
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor
from torch.nn.functional import normalize

from prism_dml.selection import PRISM, MemoryBank, Selection

C, D, B = 6, 8, 12


def draw(generator: torch.Generator, batch: int = B, classes: int = C) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings round class directions, a third of the labels wrong; duplicates and repeated samples."""
    index = torch.randint(-2, 25, (batch,), generator=generator)
    truth = torch.randint(classes, (batch,), generator=generator)
    noisy = torch.rand(batch, generator=generator) < 0.3
    labels = torch.where(noisy, torch.randint(classes, (batch,), generator=generator), truth)
    embeddings = torch.eye(D)[truth] + 0.5 * torch.randn(batch, D, generator=generator)
    if batch > 1 and torch.rand((), generator=generator) < 0.3:
        embeddings[1], labels[1], index[1] = embeddings[0], labels[0], index[0]
    return normalize(embeddings, dim=1), labels, index


class NaivePRISM:
    """Method.md, section 2, sample by sample and class by class, in Python's own numbers."""

    def __init__(
        self, rate: float, threshold: str, bank_size: int, window: int, warmup: int, temperature: float = 1.0
    ) -> None:
        self.rate, self.threshold, self.bank_size = rate, threshold, bank_size
        self.window, self.warmup, self.temperature = window, warmup, temperature
        self.bank: list[tuple[list[float], int, int]] = []
        self.quantiles: list[float] = []
        self.batches = 0

    def similarity(self, x: list[float], k: int, given: int, index: int) -> float | None:
        cosines = [
            sum(a * b for a, b in zip(x, v, strict=True))
            for v, label, sample in self.bank
            if label == k and not (k == given and index >= 0 and sample == index)
        ]
        return sum(cosines) / len(cosines) if cosines else None

    def __call__(
        self, embeddings: Tensor, labels: Tensor, index: Tensor | None, proxies: Tensor | None
    ) -> tuple[list[bool], list[float], float, list[int], list[float]]:
        probabilities, known, suggested, margins = [], [], [], []
        for i, (x, y) in enumerate(zip(embeddings.double().tolist(), labels.tolist(), strict=True)):
            sample = -1 if index is None else int(index[i])
            logits = {
                k: self.similarity(x, k, y, sample) if proxies is None else float(proxies[i, k])
                for k in range(C)
            }
            present = {k: t for k, t in logits.items() if t is not None}
            if y not in present:
                probabilities.append(1.0), known.append(False), suggested.append(y), margins.append(0.0)
                continue
            weights = {k: math.exp(t / self.temperature) for k, t in present.items()}
            probabilities.append(weights[y] / sum(weights.values()))
            known.append(True)
            suggested.append(max(present, key=lambda k: present[k]))
            others = [t for k, t in present.items() if k != y]
            margins.append(present[y] - max(others) if others else 0.0)

        places = [i for i in range(len(known)) if known[i]]
        ordered = sorted(probabilities[i] for i in places)
        if self.threshold == "top-r":
            number = math.floor(len(ordered) * self.rate + 1e-9)
            lowest = sorted(places, key=lambda i: probabilities[i])[:number]
            rejected = [i in lowest for i in range(len(known))]
            limit = ordered[number] if ordered else 1.0
        else:
            if ordered:
                place = self.rate * (len(ordered) - 1)
                low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
                self.quantiles.append(low + (high - low) * (place - math.floor(place)))
            recent = self.quantiles[-self.window :]
            limit = sum(recent) / len(recent) if recent and self.rate > 0 else 0.0
            rejected = [known[i] and probabilities[i] < limit for i in range(len(known))]
        self.batches += 1
        keep = [not r or self.batches <= self.warmup for r in rejected]
        return keep, probabilities, limit, suggested, margins

    def enqueue(self, embeddings: Tensor, labels: Tensor, index: Tensor | None) -> None:
        samples = [-1] * len(labels) if index is None else index.tolist()
        self.bank += zip(embeddings.double().tolist(), labels.tolist(), samples, strict=True)
        self.bank = self.bank[-self.bank_size :]


@pytest.mark.parametrize("threshold", ["smooth", "top-r"])
@pytest.mark.parametrize("similarity", ["centre", "exact", "proxy"])
@pytest.mark.parametrize(
    "rate, bank_size, warmup, indexed",
    [(0.3, 60, 3, True), (0.5, 7, 0, False), (0.0, 40, 0, True), (0.25, 3, 0, True)],
)
def test_against_loops(
    threshold: Any, similarity: Any, rate: float, bank_size: int, warmup: int, indexed: bool
) -> None:
    generator = torch.Generator().manual_seed(1)
    prism = PRISM(C, D, rate, similarity, bank_size, window=4, threshold=threshold, warmup=warmup)
    naive = NaivePRISM(rate, threshold, bank_size, 4, warmup)
    rejected = 0
    for step in range(50):
        batch = [B, 5, 1, 0][min(step % 10, 3)] if step % 10 < 4 else B
        # few classes at first: some are absent from the bank
        embeddings, labels, index = draw(generator, batch, classes=C if step > 12 else 3)
        given = index if indexed else None
        proxies = torch.rand(batch, C, generator=generator) if similarity == "proxy" else None
        selection = prism(embeddings, labels, given, proxies)
        keep, probabilities, limit, suggested, margins = naive(embeddings, labels, given, proxies)
        assert selection.keep.tolist() == keep
        assert selection.clean_probability.tolist() == pytest.approx(probabilities, abs=2e-6)
        assert selection.suggested_label.tolist() == suggested
        assert selection.margin.tolist() == pytest.approx(margins, abs=2e-6)
        if batch:
            assert selection.threshold.item() == pytest.approx(limit, abs=2e-6)
        rejected += keep.count(False)
        kept = selection.keep
        for memory in (prism, naive):
            memory.enqueue(embeddings[kept], labels[kept], None if given is None else given[kept])
    assert (rejected > 5) == (rate > 0)


def test_temperature_against_loops() -> None:
    generator = torch.Generator().manual_seed(2)
    prism = PRISM(C, D, 0.3, bank_size=40, threshold="top-r", temperature=0.1)
    naive = NaivePRISM(0.3, "top-r", 40, 4, 0, temperature=0.1)
    for _ in range(20):
        embeddings, labels, index = draw(generator)
        selection = prism(embeddings, labels, index)
        keep, probabilities, limit, *_ = naive(embeddings, labels, index, None)
        assert selection.keep.tolist() == keep
        assert selection.clean_probability.tolist() == pytest.approx(probabilities, abs=2e-6)
        assert selection.threshold.item() == pytest.approx(limit, abs=2e-6)
        for memory in (prism, naive):
            memory.enqueue(embeddings[selection.keep], labels[selection.keep], index[selection.keep])


class SelectorAgainstLoops(RuleBasedStateMachine):
    """Any order of scoring, judging, remembering, resizing, saving and loading, against the loops."""

    @initialize(
        rate=st.sampled_from([0.0, 0.2, 0.5]),
        similarity=st.sampled_from(["centre", "exact"]),
        threshold=st.sampled_from(["smooth", "top-r"]),
        bank_size=st.integers(1, 20),
        window=st.integers(1, 4),
        warmup=st.integers(0, 3),
        seed=st.integers(0, 999),
    )
    def start(self, rate, similarity, threshold, bank_size, window, warmup, seed) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.new = lambda size: PRISM(C, D, rate, similarity, size, window, threshold, warmup)
        self.prism, self.naive = self.new(bank_size), NaivePRISM(rate, threshold, bank_size, window, warmup)
        self.kept: tuple[Tensor, Tensor, Tensor] | None = None

    @rule(batch=st.integers(0, 9), classes=st.integers(1, C))
    def score(self, batch: int, classes: int) -> None:
        embeddings, labels, index = draw(self.generator, batch, classes)
        selection = self.prism(embeddings, labels, index)
        keep, probabilities, limit, _, margins = self.naive(embeddings, labels, index, None)
        assert selection.clean_probability.tolist() == pytest.approx(probabilities, abs=2e-6)
        assert selection.margin.tolist() == pytest.approx(margins, abs=2e-6)
        for kept, expected, probability in zip(selection.keep.tolist(), keep, probabilities, strict=True):
            assert kept == expected or abs(probability - limit) < 2e-6, "rounding decides, or nothing"
        self.kept = (embeddings[selection.keep], labels[selection.keep], index[selection.keep])

    @rule()
    @precondition(lambda self: self.kept)
    def enqueue_what_was_kept(self) -> None:
        self.prism.enqueue(*self.kept)
        self.naive.enqueue(*self.kept)
        self.kept = None

    @rule(batch=st.integers(0, 25))
    def enqueue_without_scoring(self, batch: int) -> None:
        embeddings, labels, _ = draw(self.generator, batch)
        self.prism.enqueue(embeddings, labels)
        self.naive.enqueue(embeddings, labels, None)

    @rule()
    def judge(self) -> None:
        before = copy.deepcopy(self.prism.state_dict())
        self.prism.judge(*draw(self.generator, 5))
        for key, value in self.prism.state_dict().items():
            torch.testing.assert_close(value, before[key], rtol=0, atol=0, equal_nan=True)

    @rule()
    def save_and_load(self) -> None:
        restored = self.new(self.naive.bank_size)
        restored.load_state_dict({key: value.clone() for key, value in self.prism.state_dict().items()})
        self.prism = restored

    @rule(size=st.integers(1, 30))
    def resize(self, size: int) -> None:
        self.prism.bank.resize(size)
        self.naive.bank_size = size
        self.naive.bank = self.naive.bank[-size:]

    @invariant()
    def the_memory_is_that_of_the_loops(self) -> None:
        assert len(self.prism.bank) == len(self.naive.bank)
        present = self.prism.bank.labels[self.prism.bank.labels >= 0]
        assert sorted(present.tolist()) == sorted(label for _, label, _ in self.naive.bank)


TestSelectorAgainstLoops = SelectorAgainstLoops.TestCase
TestSelectorAgainstLoops.settings = settings(max_examples=25, stateful_step_count=12, deadline=None)


def fresh(**options: Any) -> PRISM:
    return PRISM(C, D, **{"noise_rate": 0.3, "bank_size": 40, "window": 5} | options)


def learn(prism: PRISM, generator: torch.Generator, steps: int) -> list[Selection]:
    selections = []
    for _ in range(steps):
        embeddings, labels, index = draw(generator)
        proxies = torch.rand(B, C, generator=generator) if prism.similarity == "proxy" else None
        selections.append(prism(embeddings, labels, index, proxies))
        kept = selections[-1].keep
        prism.enqueue(embeddings[kept], labels[kept], index[kept])
    return selections


def assert_same(one: Selection, other: Selection) -> None:
    for a, b in zip(astuple(one), astuple(other), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("rate", [0.3, "auto"])
@pytest.mark.parametrize("threshold", ["smooth", "top-r"])
@pytest.mark.parametrize("similarity", ["centre", "exact", "vmf", "proxy"])
def test_a_restored_selector_continues_bit_for_bit(rate: Any, threshold: Any, similarity: Any) -> None:
    options = {"noise_rate": rate, "threshold": threshold, "similarity": similarity, "warmup": 9}
    prism, generator = fresh(**options), torch.Generator().manual_seed(3)
    learn(prism, generator, 7)
    restored = fresh(**options)
    restored.load_state_dict(copy.deepcopy(prism.state_dict()))
    again = torch.Generator()
    again.set_state(generator.get_state())
    for one, other in zip(learn(prism, generator, 12), learn(restored, again, 12), strict=True):
        assert_same(one, other)
    assert prism.noise_rate_estimate == restored.noise_rate_estimate
    for (key, one), other in zip(prism.state_dict().items(), restored.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True, msg=key)


def test_scoring_alone_changes_no_memory() -> None:
    prism, generator = fresh(), torch.Generator().manual_seed(0)
    learn(prism, generator, 5)
    before = copy.deepcopy(prism.bank.state_dict())
    embeddings, labels, index = draw(generator)
    prism(embeddings, labels, index)
    assert all(torch.equal(before[key], value) for key, value in prism.bank.state_dict().items())


@pytest.mark.parametrize("rate", [0.3, "auto"])
@pytest.mark.parametrize("chunk", [5, 4096])
def test_judge_changes_nothing_and_rejects_the_lowest_share(
    rate: Any, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prism_dml.selection.prism._CHUNK", chunk)
    prism, generator = fresh(noise_rate=rate), torch.Generator().manual_seed(0)
    learn(prism, generator, 8)
    before = copy.deepcopy(prism.state_dict())
    embeddings, labels, index = draw(generator, 100)
    selection, share = prism.judge(embeddings, labels, index)
    for key, value in prism.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0, equal_nan=True)
    called = prism(embeddings, labels, index)
    torch.testing.assert_close(selection.clean_probability, called.clean_probability)
    assert rate == "auto" or share == pytest.approx(rate)
    assert abs(int((~selection.keep).sum()) - share * 100) < 1.01
    rejected = selection.clean_probability[~selection.keep]
    assert rejected.max() <= selection.clean_probability[selection.keep].min()


@pytest.mark.parametrize("rate", [0.3, "auto"])
def test_judge_asks_for_proxies_by_parts(rate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prism_dml.selection.prism._CHUNK", 7)
    prism, generator = fresh(noise_rate=rate, similarity="proxy"), torch.Generator().manual_seed(0)
    embeddings, labels, index = draw(generator, 20)
    proxies, asked = torch.randn(C, D, generator=generator), []

    def similarities(some: Tensor) -> Tensor:
        asked.append(len(some))
        return some @ proxies.T

    by_parts, share = prism.judge(embeddings, labels, index, similarities)
    whole, same = prism.judge(embeddings, labels, index, similarities(embeddings))
    assert asked == [7, 7, 6, 20] and share == same and 0 < (~whole.keep).sum() < 20
    for one, other in zip(astuple(by_parts), astuple(whole), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("similarity", ["centre", "exact", "vmf", "proxy"])
@pytest.mark.parametrize("rate", [0.3, "auto"])
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_what_is_not_finite_is_not_kept_and_changes_nothing_for_others(
    broken: float, rate: Any, similarity: Any
) -> None:
    prism, generator = fresh(noise_rate=rate, similarity=similarity), torch.Generator().manual_seed(0)
    learn(prism, generator, 8)
    vectors, labels, index = draw(generator, 12)
    proxies = torch.randn(C, D, generator=generator)

    def judged(by: PRISM, rows: Tensor, given: Tensor, numbers: Tensor) -> tuple[Selection, Selection]:
        asked = (rows, given, numbers, rows @ proxies.T if similarity == "proxy" else None)
        return copy.deepcopy(by)(*asked), by.judge(*asked)[0]

    without = judged(prism, vectors[:-1], labels[:-1], index[:-1])
    vectors[-1, 0] = broken
    for whole, others in zip(judged(prism, vectors, labels, index), without, strict=True):
        assert not whole.keep[-1] and whole.clean_probability[-1] == 0
        assert whole.suggested_label[-1] == labels[-1]
        torch.testing.assert_close(whole.threshold, others.threshold)
        assert torch.equal(whole.keep[:-1], others.keep) and others.keep.any()
        torch.testing.assert_close(whole.clean_probability[:-1], others.clean_probability)


def test_judge_takes_an_empty_set() -> None:
    selection, share = fresh().judge(torch.zeros(0, D), torch.zeros(0, dtype=torch.long))
    assert selection.keep.shape == (0,) and share == pytest.approx(0.3)


@pytest.mark.parametrize("similarity", ["centre", "exact", "vmf", "proxy"])
@pytest.mark.parametrize("rate", [0.5, "auto"])
def test_nothing_has_a_gradient(similarity: Any, rate: Any) -> None:
    prism = fresh(similarity=similarity, noise_rate=rate)
    learn(prism, torch.Generator().manual_seed(0), 4)
    embeddings, labels, index = draw(torch.Generator().manual_seed(1))
    embeddings.requires_grad_()
    proxies = torch.rand(B, C, requires_grad=True) if similarity == "proxy" else None
    selection = prism(embeddings, labels, index, proxies)
    prism.enqueue(embeddings, labels, index)
    tensors = [*astuple(selection), *prism.state_dict().values()]
    assert not any(t.requires_grad for t in tensors) and not list(prism.parameters())


@pytest.mark.parametrize("similarity", ["centre", "exact", "vmf", "proxy"])
def test_autocast_changes_nothing(similarity: Any) -> None:
    plain, cast = fresh(similarity=similarity), fresh(similarity=similarity)
    expected = learn(plain, torch.Generator().manual_seed(0), 6)
    with torch.autocast("cpu", torch.bfloat16):
        selections = learn(cast, torch.Generator().manual_seed(0), 6)
    for one, other in zip(expected, selections, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("similarity", ["centre", "exact", "vmf"])
def test_half_precision_embeddings_are_scored_in_float32(dtype: torch.dtype, similarity: Any) -> None:
    half, full = fresh(similarity=similarity), fresh(similarity=similarity)
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        embeddings, labels, index = draw(generator)
        embeddings = embeddings.to(dtype)
        one, other = half(embeddings, labels, index), full(embeddings.float(), labels, index)
        assert one.clean_probability.dtype == torch.float32
        assert_same(one, other)
        half.enqueue(embeddings[one.keep], labels[one.keep], index[one.keep])
        full.enqueue(embeddings[one.keep].float(), labels[one.keep], index[one.keep])


@pytest.mark.parametrize("rate", [0.3, "auto"])
@pytest.mark.parametrize("similarity", ["centre", "vmf"])
def test_rounding_a_model_rounds_no_state(rate: Any, similarity: Any) -> None:
    whole, rounded = (fresh(similarity=similarity, noise_rate=rate) for _ in range(2))
    for prism in (whole, rounded):
        learn(prism, torch.Generator().manual_seed(0), 6)
    torch.nn.Sequential(rounded).half()
    for name, buffer in whole.state_dict().items():
        assert torch.equal(buffer.nan_to_num(-1), rounded.state_dict()[name].nan_to_num(-1)), name
        assert buffer.dtype == rounded.state_dict()[name].dtype, name
    after = [learn(prism, torch.Generator().manual_seed(1), 3) for prism in (whole, rounded)]
    for one, other in zip(*after, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("rate", [0.9, "auto"])
def test_an_empty_bank_and_an_empty_batch_keep_everything(rate: Any) -> None:
    prism = fresh(noise_rate=rate)
    embeddings, labels, _ = draw(torch.Generator().manual_seed(0))
    selection = prism(embeddings, labels)
    assert selection.keep.all() and (selection.clean_probability == 1).all()
    assert torch.equal(selection.suggested_label, labels)
    empty = prism(embeddings[:0], labels[:0])
    assert empty.keep.shape == (0,) and empty.threshold.isfinite()
    prism.enqueue(embeddings[:0], labels[:0])
    assert len(prism.bank) == 0


def test_a_step_with_all_rejected_leaves_the_selector_working() -> None:
    prism = fresh(noise_rate=0.2, window=50)
    eye = torch.eye(D)[:C]
    prism.enqueue(eye, torch.arange(C))
    for _ in range(20):
        assert prism(eye, torch.arange(C)).keep.all()
    selection = prism(eye, torch.arange(C).roll(1))
    assert not selection.keep.any()
    assert torch.equal(selection.suggested_label, torch.arange(C))
    prism.enqueue(eye[selection.keep], torch.arange(C)[selection.keep])
    assert len(prism.bank) == C and prism(eye, torch.arange(C)).keep.all()


def test_warm_up_keeps_but_already_measures() -> None:
    cold, warm = fresh(warmup=0), fresh(warmup=4)
    for step in range(8):
        embeddings, labels, index = draw(torch.Generator().manual_seed(step))
        plain, selection = cold(embeddings, labels, index), warm(embeddings, labels, index)
        assert torch.equal(plain.clean_probability, selection.clean_probability)
        assert torch.equal(plain.threshold, selection.threshold)
        assert torch.equal(selection.keep, plain.keep | (step < 4))
        for prism in (cold, warm):
            prism.enqueue(embeddings, labels, index)
    assert not plain.keep.all()


def test_a_sample_does_not_vouch_for_itself() -> None:
    prism = fresh(noise_rate=0.5, threshold="top-r")
    others = torch.eye(D)[:2]
    wrong = torch.eye(D)[0]  # looks like class 0, is labelled 1, and fills class 1 with itself
    prism.enqueue(
        torch.stack([*others, wrong, wrong, wrong]),
        torch.tensor([0, 1, 1, 1, 1]),
        torch.tensor([0, 1, 7, 7, 7]),
    )
    query, label = wrong[None], torch.tensor([1])
    vouched = prism(query, label).clean_probability
    alone = prism(query, label, torch.tensor([7])).clean_probability
    expected = math.exp(0) / (math.exp(0) + math.exp(1))
    assert alone.item() == pytest.approx(expected, abs=1e-6) and vouched > alone + 0.1
    # entries under another label are another matter
    unknown = prism(torch.eye(D)[:1], torch.tensor([0]), torch.tensor([7])).clean_probability
    assert unknown.item() == pytest.approx(math.exp(1) / (math.exp(1) + math.exp(0.75)), abs=1e-6)


def test_of_a_sample_that_is_its_class_nothing_is_known() -> None:
    prism = fresh(noise_rate=0.9)
    prism.enqueue(torch.eye(D)[:2], torch.tensor([0, 1]), torch.tensor([5, 6]))
    selection = prism(torch.eye(D)[:1], torch.tensor([0]), torch.tensor([5]))
    assert selection.keep.all() and selection.clean_probability == 1 and selection.margin == 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"noise_rate": 1.0}, "noise_rate"), ({"noise_rate": -0.1}, "noise_rate"), ({"noise_rate": "maybe"}, "auto"),
        ({"noise_rate": math.nan}, "noise_rate"), ({"noise_rate": None}, "noise_rate"),
        ({"similarity": "cosine"}, "centre"), ({"threshold": "hard"}, "smooth"), ({"window": 0}, "window"),
        ({"warmup": -1}, "warmup"), ({"bank_size": 0}, "size"), ({"temperature": 0.0}, "temperature"),
    ],
)  # fmt: skip
def test_bad_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fresh(**options)


@pytest.mark.parametrize("threshold", ["smooth", "top-r"])
def test_vmf_ranks_probabilities_that_vanish(threshold: Any) -> None:
    """Half of the labels are wrong, and the rate is given as less: most wrong ones have a probability of 0."""
    generator, dim, classes, batch = torch.Generator().manual_seed(0), 64, 10, 40
    prism = PRISM(classes, dim, 0.3, "vmf", bank_size=200, window=10, threshold=threshold)

    def unit(truth: Tensor) -> Tensor:
        return normalize(
            torch.eye(dim)[truth] + 0.05 * torch.randn(len(truth), dim, generator=generator), dim=1
        )

    truth = torch.arange(200) % classes
    prism.enqueue(unit(truth), truth)
    wrong = torch.arange(batch) >= batch // 2
    rejected, vanished = [], []
    for _ in range(20):
        truth = torch.randint(classes, (batch,), generator=generator)
        selection = prism(unit(truth), torch.where(wrong, (truth + 1) % classes, truth))
        rejected.append(~selection.keep)
        vanished.append(selection.clean_probability == 0)
    assert torch.stack(vanished)[:, wrong].float().mean() > 0.9
    assert not torch.stack(rejected)[:, ~wrong].any()
    assert torch.stack(rejected)[5:].float().mean().item() == pytest.approx(0.3, abs=0.05)


def test_vmf_needs_four_dimensions() -> None:
    with pytest.raises(ValueError, match="at least 4"):
        PRISM(3, 3, similarity="vmf")


def test_a_memory_may_be_given() -> None:
    bank = MemoryBank(3, 5, 7)
    assert PRISM(3, 5, bank=bank).bank is bank
    with pytest.raises(ValueError, match="bank must be of 3 classes and 6 dimensions"):
        PRISM(3, 6, bank=bank)


@pytest.mark.parametrize("call", ["forward", "judge"])
def test_bad_shapes(call: str) -> None:
    prism, proxy = fresh(), fresh(similarity="proxy")
    vectors, labels, index = draw(torch.Generator().manual_seed(0))
    for bad in [(vectors[:, 1:], labels), (vectors, labels[1:]), (vectors, labels[:, None]),
                (vectors, labels, index[1:]), (vectors, labels, index, torch.zeros(B, C))]:  # fmt: skip
        with pytest.raises(ValueError):
            getattr(prism, call)(*bad)
    for similarities in (None, torch.zeros(B, C + 1), torch.zeros(B - 1, C)):
        with pytest.raises(ValueError, match="class_similarities"):
            getattr(proxy, call)(vectors, labels, None, similarities)
    assert prism.batches == 0 and len(prism.bank) == 0


@pytest.mark.parametrize("label", [-1, 5])
def test_labels_outside_the_classes_are_refused_and_change_nothing(label: int) -> None:
    prism = PRISM(5, 8, bank_size=4)
    embeddings, labels = torch.nn.functional.normalize(torch.randn(4, 8)), torch.arange(4)
    prism.enqueue(embeddings, labels)
    before = {name: value.clone() for name, value in prism.state_dict().items()}
    labels = torch.tensor([0, 1, label, 2])
    with pytest.raises(ValueError, match=r"labels must be in \[0, 5\)"):
        prism(embeddings, labels)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 5\)"):
        prism.enqueue(embeddings, labels)
    torch.testing.assert_close(dict(prism.state_dict()), before, rtol=0, atol=0, equal_nan=True)


def test_labels_of_any_integer_type() -> None:
    prism = PRISM(5, 8)
    embeddings, labels = torch.nn.functional.normalize(torch.randn(4, 8)), torch.arange(4, dtype=torch.uint8)
    prism.enqueue(embeddings, labels)
    assert torch.equal(prism(embeddings, labels).keep, prism(embeddings, labels.long()).keep)
