"""What the processes of test_sharded.py check, each by itself: it holds the whole memory beside its part of one."""

from __future__ import annotations

import json
import os
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.functional import normalize

from prism_dml.losses.contrastive import MemoryContrastiveLoss
from prism_dml.selection import PRISM, MemoryBank, ShardedBank
from prism_dml.training.ranks import leave

PROCESSES = 3
CLASSES, DIM = 5, 6
WHOLE = ("total", "class_sums", "class_counts", "centres")
ROWS = ("embeddings", "labels", "index")


def random_batch(generator: torch.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unit vectors, labels, sample numbers, of which some are not known."""
    vectors = normalize(torch.randn(count, DIM, generator=generator), dim=1)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    return vectors, labels, torch.randint(-2, 25, (count,), generator=generator)


def filled(size: int, batches: list[int], group=None) -> tuple[MemoryBank, ShardedBank, torch.Generator]:
    """The same batches in a whole memory and in a part of one."""
    generator = torch.Generator().manual_seed(size)
    whole, part = MemoryBank(CLASSES, DIM, size), ShardedBank(CLASSES, DIM, size, group)
    for count in batches:
        batch = random_batch(generator, count)
        whole.enqueue(*batch)
        part.enqueue(*batch)
    return whole, part, generator


def assert_same_memory(whole: MemoryBank, part: MemoryBank) -> None:
    """Sums, counts and centres bit for bit, and what each sample itself has in the memory."""
    for name in WHOLE:
        assert torch.equal(getattr(whole, name), getattr(part, name)), name
    index = torch.arange(-1, 26).repeat_interleave(CLASSES)
    labels = torch.arange(CLASSES).repeat(27)
    sums, counts = whole.own_entries(labels, index)
    part_sums, part_counts = part.own_entries(labels, index)
    assert torch.equal(counts, part_counts) and counts.sum() > 0
    torch.testing.assert_close(part_sums, sums, rtol=0, atol=1e-12)


SEQUENCES = {3: [1, 1, 4, 2], 7: [2, 0, 5, 3, 7, 9, 30, 1], 12: [5, 5, 5, 5, 1, 1], 40: [16, 16, 16, 16]}


def a_part_has_every_third_slot_and_the_sums_of_all() -> None:
    for size, batches in SEQUENCES.items():
        for until in range(1, len(batches) + 1):
            whole, part, _ = filled(size, batches[:until])
            assert len(whole) == len(part)
            assert part.embeddings.shape == (-(-size // PROCESSES), DIM), "no more is held"
            assert {len(getattr(part, n)) for n in (*ROWS, "latest", "previous")} == {-(-size // PROCESSES)}
            for name in ROWS:
                own = getattr(whole, name)[dist.get_rank() :: PROCESSES]
                assert torch.equal(getattr(part, name)[: len(own)], own), name
            assert_same_memory(whole, part)


def the_first_process_gathers_the_whole() -> None:
    for size, batches in SEQUENCES.items():
        whole, part, _ = filled(size, batches)
        gathered = part.gather()
        assert (gathered is not None) == (dist.get_rank() == 0)
        if gathered is not None:
            for name in ROWS:
                assert torch.equal(getattr(gathered, name), getattr(whole, name)), name
            assert_same_memory(whole, gathered)


def a_whole_memory_goes_on_in_parts_and_a_part_as_it_was() -> None:
    for size, batches in SEQUENCES.items():
        whole, part, generator = filled(size, batches)
        of_whole, of_part = (ShardedBank(CLASSES, DIM, size) for _ in range(2))
        of_whole.load_state_dict({key: value.clone() for key, value in whole.state_dict().items()})
        of_part.load_state_dict({key: value.clone() for key, value in part.state_dict().items()})
        for _ in range(6):
            for bank in (of_whole, of_part):
                assert_same_memory(whole, bank)
            batch = random_batch(generator, 5)
            for bank in (whole, of_whole, of_part):
                bank.enqueue(*batch)


def prism_judges_by_parts_as_by_the_whole() -> None:
    for similarity in ("centre", "exact", "vmf"):
        for noise_rate in (0.3, "auto"):
            bank = ShardedBank(CLASSES, DIM, 20)
            one = PRISM(CLASSES, DIM, noise_rate, similarity, bank_size=20, window=3)
            other = PRISM(CLASSES, DIM, noise_rate, similarity, window=3, bank=bank)
            generator = torch.Generator().manual_seed(1)
            for step in range(12):
                batch = random_batch(generator, 8)
                a, b = one(*batch), other(*batch)
                assert torch.equal(a.keep, b.keep) and torch.equal(a.suggested_label, b.suggested_label)
                for name in ("clean_probability", "threshold", "margin"):
                    torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-5, atol=1e-5)
                keep = a.keep if step != 5 else torch.zeros_like(a.keep)  # all rejected
                for selector in (one, other):
                    selector.enqueue(*(column[keep] for column in batch))
            many = random_batch(generator, 50)
            (a, rate), (b, other_rate) = one.judge(*many), other.judge(*many)
            assert torch.equal(a.keep, b.keep) and abs(rate - other_rate) < 1e-6
            assert not a.keep.all()


def loss_and_gradient_are_those_of_the_whole() -> None:
    loss = MemoryContrastiveLoss(margin=0.1, bank_weight=0.7)
    for count in (9, 0):
        whole, part, generator = filled(40, [16, 16, 16, 16])
        vectors, labels, index = random_batch(generator, count)
        results = []
        for bank in (whole, part):
            x = vectors.double().requires_grad_()
            value = loss(x, labels, bank.embeddings, bank.labels, index, bank.index, bank.sum_over_shares)
            value.backward()
            results.append((value.detach(), x.grad))
        torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
        x = vectors.double()
        without = loss(x, labels, part.embeddings, part.labels, index, part.index)
        assert count == 0 or abs(without - results[0][0]) > 0.01, "a part alone is not enough"


def a_group_may_be_some_of_the_processes() -> None:
    group = dist.new_group([1, 2])
    if dist.get_rank() > 0:
        whole, part, _ = filled(7, SEQUENCES[7], group)
        assert_same_memory(whole, part)
        gathered = part.gather()
        assert (gathered is not None) == (dist.get_rank() == 1)
        assert gathered is None or torch.equal(gathered.embeddings, whole.embeddings)


def a_bank_of_fewer_slots_than_processes_is_refused() -> None:
    try:
        ShardedBank(CLASSES, DIM, 2)
    except ValueError as error:
        assert "a bank of 2 cannot be shared out over 3 processes" in str(error)
    else:
        raise AssertionError("it was not")


def the_state_of_another_bank_is_refused() -> None:
    part = ShardedBank(CLASSES, DIM, 12)
    for other in (MemoryBank(CLASSES, DIM, 13), MemoryBank(CLASSES, DIM + 1, 12)):
        try:
            part.load_state_dict(other.state_dict())
        except RuntimeError as error:
            assert "size mismatch for embeddings" in str(error)
        else:
            raise AssertionError("it was not")


CHECKS = {
    check.__name__: check
    for check in (
        a_part_has_every_third_slot_and_the_sums_of_all,
        the_first_process_gathers_the_whole,
        a_whole_memory_goes_on_in_parts_and_a_part_as_it_was,
        prism_judges_by_parts_as_by_the_whole,
        loss_and_gradient_are_those_of_the_whole,
        a_group_may_be_some_of_the_processes,
        a_bank_of_fewer_slots_than_processes_is_refused,
        the_state_of_another_bank_is_refused,
    )
}


def check_all(rank: int, folder: Path) -> None:
    """Make all checks; what went wrong with each is left in the folder."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=PROCESSES,
        timeout=timedelta(seconds=60),
    )
    failures = {}
    for name, check in CHECKS.items():
        try:
            check()
        except Exception:
            failures[name] = traceback.format_exc()
    (folder / f"{rank}.json").write_text(json.dumps(failures))
    # `leave` sees to the group of all; the one of some of the processes would wait for its threads just so.
    backends = [group._get_backend(torch.device("cpu")) for group in dist.distributed_c10d._world.pg_map]
    leave()
    del backends
