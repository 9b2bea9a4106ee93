import time

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from prism_dml.selection import MemoryBank

DIM = 3


def grid(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Random numbers whose sums are exact in floating point, so that equality can be asked for."""
    return torch.randint(-64, 65, shape, generator=generator) / 64


class BankAgainstList(RuleBasedStateMachine):
    """The bank against a list that the oldest entries are dropped from."""

    @initialize(size=st.integers(1, 9), classes=st.integers(1, 4), seed=st.integers(0, 99))
    def start(self, size: int, classes: int, seed: int) -> None:
        self.size, self.classes = size, classes
        self.bank = MemoryBank(classes, DIM, size)
        self.entries: list[tuple[torch.Tensor, int, int]] = []
        self.total = 0
        self.generator = torch.Generator().manual_seed(seed)

    @rule(batch=st.integers(0, 22), known=st.sampled_from(["no", "some", "all"]), samples=st.integers(1, 12))
    def enqueue(self, batch: int, known: str, samples: int) -> None:
        vectors = grid(self.generator, batch, DIM)
        labels = torch.randint(self.classes, (batch,), generator=self.generator)
        lowest = 0 if known == "all" else -3
        index = torch.randint(lowest, samples, (batch,), generator=self.generator)
        if known == "no":
            index = torch.full_like(labels, -1)
        self.bank.enqueue(vectors, labels, None if known == "no" else index)
        self.entries += zip(vectors, labels.tolist(), index.tolist(), strict=True)
        self.entries = self.entries[-self.size :]
        self.total += batch

    @rule(size=st.integers(1, 12))
    def resize(self, size: int) -> None:
        self.bank.resize(size)
        self.size = size
        self.entries = self.entries[-size:]
        self.total = len(self.entries)

    @rule()
    @precondition(lambda self: self.entries)
    def save_and_load(self) -> None:
        restored = MemoryBank(self.classes, DIM, self.size)
        restored.load_state_dict({key: value.clone() for key, value in self.bank.state_dict().items()})
        self.bank = restored

    @invariant()
    def entries_are_the_newest_in_order(self) -> None:
        assert len(self.bank) == len(self.entries)
        for number, (vector, label, index) in enumerate(self.entries, self.total - len(self.entries)):
            slot = number % self.size
            assert torch.equal(self.bank.embeddings[slot], vector)
            assert self.bank.labels[slot] == label
            assert max(int(self.bank.index[slot]), -1) == max(index, -1)
        assert (self.bank.labels >= 0).sum() == len(self.entries)

    @invariant()
    def class_sums_counts_and_centres_are_exact(self) -> None:
        for k in range(self.classes):
            members = [vector for vector, label, _ in self.entries if label == k]
            total = sum(members, torch.zeros(DIM))
            assert self.bank.class_counts[k] == len(members)
            assert torch.equal(self.bank.class_sums[k], total.double())
            assert torch.equal(self.bank.centres[k], (total.double() / max(len(members), 1)).float())

    @invariant()
    def own_entries_are_those_of_a_scan(self) -> None:
        index = torch.arange(-1, 12).repeat_interleave(self.classes)
        labels = torch.arange(self.classes).repeat(13)
        sums, counts = self.bank.own_entries(labels, index)
        for i, label, s, count in zip(index.tolist(), labels.tolist(), sums, counts, strict=True):
            own = [v for v, given, sample in self.entries if i >= 0 and sample == i and given == label]
            assert count == len(own)
            assert torch.equal(s, sum(own, torch.zeros(DIM)).double())


TestBankAgainstList = BankAgainstList.TestCase
TestBankAgainstList.settings = settings(max_examples=40, stateful_step_count=10, deadline=None)


def test_sums_do_not_drift_and_do_not_depend_on_the_order() -> None:
    generator = torch.Generator().manual_seed(0)
    banks = [MemoryBank(5, 16, 37) for _ in range(2)]
    for _ in range(800):
        vectors = torch.nn.functional.normalize(torch.randn(24, 16, generator=generator), dim=1)
        labels, order = torch.randint(5, (24,), generator=generator), torch.randperm(24, generator=generator)
        banks[0].enqueue(vectors, labels)
        banks[1].enqueue(vectors[order], labels[order])
    for bank in banks:
        rounded = (bank.embeddings.double() * 2**32).round() / 2**32
        assert torch.equal(bank.class_sums, torch.zeros(5, 16).double().index_add_(0, bank.labels, rounded))
    vectors = torch.nn.functional.normalize(torch.randn(37, 16, generator=generator), dim=1)
    labels = torch.randint(5, (37,), generator=generator)
    banks[0].enqueue(vectors, labels)
    banks[1].enqueue(vectors.flip(0), labels.flip(0))
    assert torch.equal(banks[0].class_sums, banks[1].class_sums), "800 batches of other orders behind them"


def test_a_whole_data_set_can_be_enqueued_at_once() -> None:
    count = 30_000
    bank = MemoryBank(10, 2, count)
    index = torch.arange(count) % 7_000
    start = time.perf_counter()
    bank.enqueue(torch.ones(count, 2), torch.arange(count) % 10, index)
    assert time.perf_counter() - start < 1, "anything of size B x B takes seconds and gigabytes"
    _, counts = bank.own_entries(bank.labels[:100], index[:100])
    assert (counts == 5).all()


def test_an_emptied_class_is_exactly_zero() -> None:
    bank = MemoryBank(2, 4, 3)
    bank.enqueue(torch.rand(3, 4), torch.zeros(3, dtype=torch.long))
    bank.enqueue(torch.rand(3, 4), torch.ones(3, dtype=torch.long))
    assert bank.class_counts.tolist() == [0, 3]
    assert (bank.class_sums[0] == 0).all() and (bank.centres[0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_stored_in_float32(dtype: torch.dtype) -> None:
    bank = MemoryBank(2, 4, 5)
    vectors = torch.rand(3, 4).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        bank.enqueue(vectors, torch.tensor([0, 1, 1]))
    assert bank.embeddings.dtype == torch.float32 and not bank.embeddings.requires_grad
    assert torch.equal(bank.embeddings[:3], vectors.detach().float())
    assert torch.equal(bank.class_sums[1], vectors.detach()[1:].float().double().sum(0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_model_in_another_precision_leaves_it_as_it_is(dtype: torch.dtype) -> None:
    model = torch.nn.ModuleDict({"bank": MemoryBank(2, 4, 5), "head": torch.nn.Linear(2, 2)})
    model["bank"].enqueue(torch.rand(3, 4), torch.tensor([0, 1, 1]))
    before = {name: value.clone() for name, value in model["bank"].state_dict().items()}
    model.to(dtype)
    assert model["head"].weight.dtype == dtype
    after = model["bank"].state_dict()
    assert all(
        torch.equal(after[name], value) and after[name].dtype == value.dtype for name, value in before.items()
    )
    assert model.to("meta")["bank"].embeddings.device.type == "meta"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_does_not_stay_in_the_sums(bad: float) -> None:
    bank = MemoryBank(2, 4, 3)
    bank.enqueue(torch.tensor([[bad, 0, 0, 0], [1, 0, 0, 0]]), torch.tensor([0, 0]))
    assert bank.class_sums[0].tolist() == [1, 0, 0, 0] and bank.class_counts.tolist() == [2, 0]
    bank.enqueue(torch.eye(4)[:3], torch.tensor([0, 1, 1]))
    assert bank.class_sums.tolist() == [[1, 0, 0, 0], [0, 1, 1, 0]]


def test_an_entry_does_not_change_with_the_batch_it_came_from() -> None:
    bank = MemoryBank(2, 4, 5)
    vectors = torch.rand(3, 4)
    bank.enqueue(vectors, torch.tensor([0, 1, 1]))
    before = bank.embeddings.clone()
    vectors.zero_()
    assert torch.equal(bank.embeddings, before)


def test_everything_is_in_the_state() -> None:
    bank, other = MemoryBank(2, 4, 5), MemoryBank(2, 4, 5)
    assert not [name for name, value in vars(bank).items() if isinstance(value, torch.Tensor)]
    bank.enqueue(torch.rand(7, 4), torch.tensor([0, 1, 1, 0, 1, 0, 0]), torch.arange(7))
    other.load_state_dict(bank.state_dict())
    for name, buffer in bank.named_buffers():
        assert buffer.any(), name
        assert torch.allclose(buffer.double(), dict(other.named_buffers())[name].double(), rtol=1e-12), name


@pytest.mark.parametrize("size", [0, -3])
def test_a_memory_of_no_slots_is_refused_and_nothing_is_lost(size: int) -> None:
    bank = MemoryBank(2, 4, 5)
    bank.enqueue(torch.rand(3, 4), torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match="size must be at least 1"):
        bank.resize(size)
    assert len(bank) == 3 and bank.size == 5


@pytest.mark.parametrize("sizes", [(0, 4, 5), (2, 0, 5), (2, 4, 0), (2, 4, -1)])
def test_sizes_must_be_positive(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        MemoryBank(*sizes)


@pytest.mark.parametrize(
    "embeddings, labels, index",
    [((3, 5), (3,), None), ((3, 4), (2,), None), ((3, 4), (3, 1), None), ((4,), (4,), None),
     ((3, 4), (3,), (2,)), ((3, 4), (3,), (4,))],
)  # fmt: skip
def test_shapes_must_fit(embeddings: tuple, labels: tuple, index: tuple | None) -> None:
    bank = MemoryBank(2, 4, 5)
    numbers = None if index is None else torch.zeros(index, dtype=torch.long)
    with pytest.raises(ValueError, match="expected"):
        bank.enqueue(torch.zeros(embeddings), torch.zeros(labels, dtype=torch.long), numbers)
    assert len(bank) == 0
