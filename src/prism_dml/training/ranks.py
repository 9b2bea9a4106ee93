"""Several processes that train one model: each embeds its share of every batch, and does all else like the others."""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import Tensor, nn

from prism_dml.data import Batch, Share
from prism_dml.models import Embedder
from prism_dml.selection import MemoryBank, ShardedBank
from prism_dml.training.batch_norm import at_least_float32, share_batch_norm
from prism_dml.training.config import Precision, TrainConfig
from prism_dml.training.precision import precision_on

logger = logging.getLogger("prism_dml")

TIMEOUT = timedelta(minutes=30)
"""So long a process waits for one that is alive but silent; of one that is gone the others know at once."""


class Ranks:
    """This process and those that train with it.

    Each holds the same networks, proxies, memory (or its part of a `ShardedBank`) and thresholds. A step embeds only
    a share of the batch here; the features of all are gathered, so that every process computes the same loss and the
    same selection, and the gradients of the shares are averaged. What comes out is that of one process that embeds
    the whole batch, up to rounding (and to what layers such as dropout draw).

    Args:
        share: the part of each batch that is embedded here.
        here: how many of them are on this machine.
    """

    def __init__(self, share: Share, here: int = 1) -> None:
        self.share, self.here = share, here
        self._sizes: list[int] = []  # samples in each process's share of the batch
        self._gathering = False

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.share.rank == 0

    def connect(self, method: nn.Module, device: torch.device) -> None:
        """Let a method's networks gather features and share batch statistics."""
        if self.share.of == 1:
            return
        share_batch_norm(method, device)
        for module in method.modules():
            if isinstance(module, Embedder):
                backbone: nn.Module = module.backbone
                backbone.forward = partial(self._features, backbone.forward)

    def start_equal(self, method: nn.Module, settings: dict[str, Any]) -> None:
        """Give every process the first one's weights and memory; ValueError if they differ in settings or data.

        Of a memory that is shared out, each keeps its part: it comes from the same checkpoint.
        """
        if self.share.of == 1:
            return
        digest = hashlib.sha256(repr(sorted(settings.items())).encode()).digest()
        everyone = _gather(torch.frombuffer(bytearray(digest), dtype=torch.uint8))
        if (everyone != everyone[0]).any():
            raise ValueError("the processes of this run differ in settings, data or checkpoint")
        parts = {key for name, bank in _sharded_banks(method) for key in bank.state_dict(prefix=f"{name}.")}
        with torch.no_grad():
            for key, tensor in method.state_dict().items():
                if key in parts:
                    continue
                value = tensor.clone(memory_format=torch.contiguous_format)
                dist.broadcast(value, 0)
                tensor.copy_(value)

    def batches(self, shares: Iterable[Batch], labels: Tensor, size: int) -> Iterator[Batch]:
        """Batches of this process's images, and of the labels and sample numbers of all.

        Args:
            shares: this process's share of each batch.
            labels: (N,) of all samples.
            size: samples in the largest batch.
        """
        for own in shares:
            if self.share.of == 1:
                yield own
                continue
            padded = torch.full((self.share.largest(size),), -1)
            padded[: len(own.index)] = own.index.cpu()
            everyone = _gather(padded)  # (W, largest share), -1 where a share is shorter
            present = everyone >= 0
            self._sizes = present.sum(1).tolist()
            index = everyone[present]  # (B,)
            if len(index):
                yield Batch(own.images, labels[index].to(own.labels.device), index.to(own.index.device))

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Within it, a backbone takes this process's images and gives the features of the whole batch."""
        self._gathering = self.share.of > 1
        try:
            yield
        finally:
            self._gathering = False

    def average_gradients(self, module: nn.Module) -> None:
        """Replace each gradient by its mean over the processes."""
        if self.share.of == 1:
            return
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.share.of
        for gradient, mean in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view(gradient.shape))

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over the processes, in place."""
        if self.share.of > 1:
            dist.all_reduce(tensor)
        return tensor

    def whole_state(self, module: nn.Module) -> dict[str, Tensor]:
        """A module's state, in the first process with the whole of a memory that is shared out; all must ask."""
        state = module.state_dict()
        gathered: dict[ShardedBank, MemoryBank | None] = {}
        for name, bank in _sharded_banks(module):
            if bank not in gathered:  # a method and its selector may have the same
                gathered[bank] = bank.gather()
            if (whole := gathered[bank]) is not None:
                state |= whole.state_dict(prefix=f"{name}.")
        return state

    def agree(self, signal: int | None) -> int | None:
        """The signal that asked any of the processes to stop, or None."""
        return self.largest(signal or 0) or None

    def largest(self, number: int) -> int:
        """The largest of the processes' numbers."""
        if self.share.of == 1:
            return number
        numbers = torch.tensor(number)
        dist.all_reduce(numbers, dist.ReduceOp.MAX)
        return int(numbers)

    def _features(self, forward: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        if not self._gathering:
            return forward(images)
        # What layers draw here must not be the same for each share, nor leave the generators apart.
        seed = int(torch.randint(2**62, ())) + self.share.rank
        with torch.random.fork_rng([images.device] if images.is_cuda else []):
            torch.manual_seed(seed)
            features = forward(images)  # (b, F)
        whole: Tensor = _GatherRows.apply(at_least_float32(features), self._sizes, self.share.rank)
        return whole


ALONE = Ranks(Share())
"""One process that trains by itself."""


class _GatherRows(torch.autograd.Function):
    """Rows of all processes, one after the other; every one of them must compute the same loss from the result."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int], rank: int) -> Tensor:
        assert len(rows) == sizes[rank], "the backbone was not given this process's share of the batch"
        start = sum(sizes[:rank])
        ctx.own, ctx.processes = slice(start, start + sizes[rank]), len(sizes)
        padded = rows.new_zeros(max(sizes), rows.shape[1])
        padded[: len(rows)] = rows
        return torch.cat([part[:size] for part, size in zip(_gather(padded), sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        # The network's gradient is the sum over the shares, but gradients are averaged: those of the proxies and
        # of whatever else sees the whole batch are whole on each process.
        return gradient[ctx.own] * ctx.processes, None, None


def _sharded_banks(module: nn.Module) -> list[tuple[str, ShardedBank]]:
    """The memories of which each process holds a part, by each of their names."""
    modules = module.named_modules(remove_duplicate=False)
    return [(name, part) for name, part in modules if isinstance(part, ShardedBank)]


def _gather(tensor: Tensor) -> Tensor:
    """The same tensor (...) of all W processes, (W, ...)."""
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor)
    return torch.stack(parts)


def is_launched() -> bool:
    """Whether torchrun, or our own launcher, has started this process as one of several.

    Job systems set the same names for a process that is alone: it may start others.
    """
    named = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    return named and os.environ["WORLD_SIZE"] != "1"


def is_first() -> bool:
    """Whether this process trains alone, or is the first of those that were launched."""
    return not is_launched() or os.environ["RANK"] == "0"


def kind_of_device(config: TrainConfig) -> str:
    """cuda or cpu; ValueError if there are not as many devices as `config.devices`.

    Never an Apple GPU, which Fabric's own auto would take: it has no float64, in which sums are exact.
    """
    gpus = torch.cuda.device_count() if config.accelerator in ("auto", "cuda") else 0
    if gpus == 0 and config.accelerator != "cuda":
        return "cpu"
    if gpus == 0:
        raise ValueError("accelerator is cuda, but this machine has no GPU that torch can use")
    if config.devices > gpus:
        raise ValueError(f"devices is {config.devices}, but this machine has {gpus} GPUs")
    return "cuda"


@contextmanager
def one_line_if_lost() -> Iterator[None]:
    """Turn what a collective says of a process that is gone into ChildProcessError, in one line."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):  # gloo has no error of its own
            raise
        raise ChildProcessError(
            "another process of this run is gone, and the run with it; --resume goes on from the last checkpoint"
        ) from error


def join(config: TrainConfig) -> tuple[Fabric, Ranks]:
    """This process's device, and its place among those that were launched with it.

    Raises:
        ValueError: the machine has not so many devices, or another number of processes was launched.
    """
    if not is_launched():
        kind = kind_of_device(config)
        return Fabric(accelerator=kind, devices=1, precision=_precision(kind, config)), ALONE
    here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    if config.devices not in (1, here):
        raise ValueError(f"{here} processes were launched on this machine, but devices is {config.devices}")
    kind = kind_of_device(config)
    number = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
    if kind == "cuda":
        torch.cuda.set_device(number)
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo", timeout=TIMEOUT)
        atexit.register(leave)  # not before: another run may follow in these processes
    devices = [number] if kind == "cuda" else 1
    fabric = Fabric(accelerator=kind, devices=devices, precision=_precision(kind, config))
    return fabric, Ranks(Share(dist.get_rank(), dist.get_world_size()), here)


def _precision(kind: str, config: TrainConfig) -> Precision:
    """What is computed in; the first process says where that is not what was asked for."""
    computed_in = precision_on(kind, config.precision)
    if computed_in != config.precision and is_first():
        logger.warning("bfloat16 is slow on this CPU: computing in float32")
    return computed_in


def leave() -> None:
    """End the process group that this process is in."""
    # Where the backend ends together with its group, it waits for gloo's threads with Python's lock held, which
    # these may need to free a tensor (torch 2.4): kept a moment longer, it ends by itself and without the lock.
    assert dist.group.WORLD is not None
    backend = dist.group.WORLD._get_backend(torch.device("cpu"))
    dist.destroy_process_group()
    del backend
