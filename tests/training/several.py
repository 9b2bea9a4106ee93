"""What the processes of the tests do; they import this file, so what it imports is loaded in each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prism_dml.training.config import TrainConfig
from prism_dml.training.stop import StopRequest

RANK = "RANK"


@dataclass(frozen=True)
class Job:
    """A run, and what happens in it."""

    config: TrainConfig
    out: Path
    resume: bool = False
    double: bool = True  # network and loss in float64, so that rounding does not grow from step to step
    all_rejected: tuple[int, ...] = ()  # in these steps
    half_rejected: tuple[int, ...] = ()  # in these steps all that the last of two processes embeds
    not_finite: tuple[int, ...] = ()  # in these steps, in the last process only, all images
    stop_after: int | None = None  # a signal comes in this step, to the last process only


def do_all(data: Path, jobs: list[Job]) -> list[Any]:
    """Train each of the runs; how each ended, as the first process sees it."""
    return [do(data, job) for job in jobs]


def do(data: Path, job: Job) -> str:
    """How the run ended; the state of this process at its end is left beside the run."""
    import pytest
    import torch
    from safetensors.torch import save_file

    from prism_dml.methods.mcl import PrismMCL
    from prism_dml.models import Embedder
    from prism_dml.training import RunStopped, loop, train

    rank, processes = int(os.environ.get(RANK, 0)), int(os.environ.get("WORLD_SIZE", 1))

    class DoubleEmbedder(Embedder):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.double()

        def represent(self, images: torch.Tensor) -> torch.Tensor:
            return super().represent(images.double())

        def project(self, represented: torch.Tensor) -> torch.Tensor:
            embeddings = self.head(represented)
            return embeddings if self.training else embeddings.float()  # an embedder's own are always float32

    steps, seen, forward, step = [], [], PrismMCL._trusted, PrismMCL.forward
    add, finish = loop.Tally.add, loop.finish

    def trusted(self, embeddings, labels, index):
        kept = forward(self, embeddings, labels, index).clone()
        if len(steps) + 1 in job.all_rejected:
            kept[:] = False
        if len(steps) + 1 in job.half_rejected:
            kept[-(len(kept) // 2) :] = False
        return kept

    def spoilt(self, images, labels, index):
        seen.append(0)
        if len(seen) in job.not_finite and rank == processes - 1:
            images = images * torch.nan
        return step(self, images, labels, index)

    def counted(self, *arguments) -> None:
        steps.append(0)
        if len(steps) == job.stop_after and rank == processes - 1:
            signal.raise_signal(signal.SIGTERM)
        add(self, *arguments)

    def finished(out, method, sources, tally, *more):
        state = {f"method.{key}": value for key, value in more[-1].whole_state(method).items()}
        state |= {f"tally.{key}": value for key, value in tally.state_dict().items()}
        state = {key: value.clone(memory_format=torch.contiguous_format) for key, value in state.items()}
        save_file(state, out.with_suffix(f".{rank}"))
        return finish(out, method, sources, tally, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PrismMCL, "_trusted", trusted)
        patch.setattr(PrismMCL, "forward", spoilt)
        patch.setattr(loop.Tally, "add", counted)
        patch.setattr(loop, "finish", finished)
        if job.double:
            patch.setattr(loop, "Embedder", DoubleEmbedder)
        try:
            return str(train(data, job.config, job.out, job.resume))
        except RunStopped as stopped:
            return str(stopped)


def normalise_shares(count: int) -> list[Any]:
    """(output, gradient) of each process's share of `count` images, and the module's gradients and state."""
    import torch
    import torch.distributed as dist
    from timm.layers.norm_act import BatchNormAct2d

    from prism_dml.data import Share
    from prism_dml.training.batch_norm import share_batch_norm

    images, towards = norm_inputs(count)
    share = Share(dist.get_rank(), dist.get_world_size()).places(count)
    results = []
    for norm in (torch.nn.BatchNorm2d(3, momentum=None), BatchNormAct2d(3, affine=False)):
        norm.double()
        share_batch_norm(norm, torch.device("cpu"))
        for _ in range(2):
            x = images[share.start : share.stop].clone().requires_grad_()
            norm.zero_grad()
            y = norm(x)
            (y * towards[share.start : share.stop]).sum().backward()
        own = [p.grad for p in norm.parameters()]
        for gradient in own:
            dist.all_reduce(gradient)
        mine = [y.detach(), x.grad, *own, *norm.state_dict().values()]
        mine = [tensor.numpy() for tensor in mine]  # a tensor's memory ends with the process that sends it
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
        results.append(everyone)
    return results


def norm_inputs(count: int):
    import torch

    generator = torch.Generator().manual_seed(0)
    images = 3 + 2 * torch.randn(count, 3, 4, 4, generator=generator, dtype=torch.float64)
    return images, torch.randn(count, 3, 4, 4, generator=generator, dtype=torch.float64)


def everything(data: Path, jobs: list[Job]) -> tuple[list[Any], dict[int, list[Any]], str]:
    """All that needs several processes, in one launch: starting them takes longer than the rest."""
    return (
        do_all(data, jobs),
        {count: normalise_shares(count) for count in (5, 1)},
        multiprocessing.get_start_method(),
    )


def fail_or_wait() -> None:
    """The second process finds bad data, the first hears nothing of it."""
    if os.environ[RANK] == "1":
        raise ValueError("bad data")
    time.sleep(600)


def wait_for_signal() -> None:
    """Until it comes, which it must."""
    with StopRequest() as stop:
        deadline = time.monotonic() + 60
        while not stop and time.monotonic() < deadline:
            time.sleep(0.01)
    raise KeyboardInterrupt(f"process {os.environ[RANK]} got {stop.signal}")
