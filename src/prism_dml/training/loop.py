"""The training loop, from a data set to a folder with a model."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.optim import Optimizer

from prism_dml.data import ImageTable, PKSampler, read_table
from prism_dml.methods.base import Method, TrainingSet
from prism_dml.methods.registry import find_method
from prism_dml.models import Embedder
from prism_dml.training.allocator import keep_freed_memory
from prism_dml.training.checkpoint import load_checkpoint, read_notes, save_checkpoint
from prism_dml.training.config import TrainConfig
from prism_dml.training.guard import Guard
from prism_dml.training.launch import launch
from prism_dml.training.log import NoLog, open_log
from prism_dml.training.measure import embed_all, validate
from prism_dml.training.progress import RunProgress
from prism_dml.training.ranks import Ranks, is_launched, join, kind_of_device, one_line_if_lost
from prism_dml.training.repeatable import repeatable
from prism_dml.training.result import finish, save_networks
from prism_dml.training.run_folder import (
    holding,
    one_line_if_short,
    refuse_other_run,
    refuse_other_settings,
)
from prism_dml.training.sources import look_once, open_sources, training_fingerprint
from prism_dml.training.stop import RunStopped, StopRequest
from prism_dml.training.tally import Tally


@one_line_if_lost()
def train(
    data: str | Path | ImageTable, config: TrainConfig, out: str | Path, resume: bool = False
) -> dict[str, Any]:
    """Train an embedding and leave the run in a folder.

    The folder gets model/ (the best checkpoint by Precision@1 on the validation classes, or the last; beside it a
    method's further networks), run.json (settings, versions, result), metrics.jsonl (the log: the same for the same
    seed), and of methods that select samples.parquet (a judgement on each training sample) and embeddings.parquet (of
    the images of the run, by the saved model, for `prism audit`); until the run is finished, a checkpoint.

    With several devices, each has a process of its own: a script then calls this under `if __name__ == "__main__":`.
    Processes that torchrun has started share the work as they are; the data and the folder must be there for all.

    Args:
        data: folder, CSV or parquet, or a table that was read from one. Of its splits, if it has some, "train" is
            learned from, and one for validation ("validation", "valid" or "val") used for that.
        config: settings.
        out: folder of the run.
        resume: go on from the folder's checkpoint, bit for bit as if the run had never stopped, unless not one image of
            a batch that was streamed could be read.

    Returns:
        What run.json says of the result.

    Raises:
        ValueError: bad data or settings, a folder that holds another run or in which one is at work, a loss that stays
            infinite or NaN.
        OSError: the folder cannot be written to; a process that decodes was killed. ChildProcessError: one of several
            processes was killed, or is out of reach.
        MemoryError: torch got no more memory.
        RunStopped: SIGINT or SIGTERM came; the folder has a checkpoint.
    """
    out = Path(out)
    method_class = find_method(config.method)
    method_class.check(config)
    refuse_other_run(out, resume)
    if config.devices > 1 and not is_launched():
        kind_of_device(config)  # before processes are started in vain
        result: dict[str, Any] = launch(config.devices, train, data, config, out, resume)
        return result
    fabric, ranks = join(config)
    if fabric.device.type == "cpu":
        keep_freed_memory()
    table = data if isinstance(data, ImageTable) else read_table(data)
    embedder = Embedder(
        config.backbone,
        config.embedding_dim,
        image_size=config.image_size,
        pretrained=config.pretrained,
        weights=config.weights,
        seed=config.seed,
    )
    with holding(out, resume) if ranks.first else nullcontext(), one_line_if_short(out):
        return _train(table, embedder, config, out, resume, fabric, ranks)


def _train(
    table: ImageTable,
    embedder: Embedder,
    config: TrainConfig,
    out: Path,
    resume: bool,
    fabric: Fabric,
    ranks: Ranks,
) -> dict[str, Any]:
    """`train`, in a folder that is held."""
    settings = asdict(config) | {"data": training_fingerprint(table), "devices": ranks.share.of}

    def same_run(notes: dict[str, Any]) -> None:
        refuse_other_settings(out, notes["settings"], settings)

    if resume:  # before images are decoded, and embedded perhaps
        same_run(read_notes(out))
    method_class = find_method(config.method)
    with RunProgress("decoding", len(table), shown=ranks.first) as show:
        clean_only = method_class.clean_only
        sources = open_sources(
            table, config, embedder.transform, clean_only, fabric.device, show.reach, ranks.here
        )
    if config.freeze_backbone:
        with RunProgress("embedding", len(table), shown=ranks.first) as show, fabric.autocast():
            backbone = embedder.to(fabric.device).freeze().backbone
            with repeatable(fabric.device):
                sources = look_once(sources, backbone, config.max_unreadable, ranks, show.reach)
    samples = sources.train.table
    method = method_class(
        embedder, TrainingSet(torch.from_numpy(samples.labels), samples.num_classes), config
    )
    ranks.connect(method, fabric.device)
    optimizer = make_optimizer(method, config)
    learner, optimizer = fabric.setup(method, optimizer)
    size = (config.classes_per_batch, config.samples_per_class)
    sampler = PKSampler(samples.labels, *size, config.seed, sources.blocks)
    look_every = method.look_every(sampler.num_batches, config.steps)
    noisy = samples.is_noisy
    tally = Tally(len(samples), None if noisy is None else torch.from_numpy(noisy)).to(fabric.device)
    guard = Guard(method, config.max_bad_steps)
    modules = {"method": method, "tally": tally, "guard": guard}
    settings |= {"num_samples": len(samples), "num_classes": samples.num_classes}
    start, best, log_bytes = 0, -math.inf, 0
    if resume:
        notes = load_checkpoint(out, modules, optimizer, same_run)
        start, best, log_bytes = notes["step"], notes["best"], notes["log_bytes"]

    ranks.start_equal(method, settings | {"step": start})

    def embed(network: nn.Module) -> torch.Tensor:
        with fabric.autocast():  # as in the steps: it is half of the time
            return embed_all(network, sources.train, ranks)

    def checkpoint(step: int) -> None:
        states = {name: ranks.whole_state(module) for name, module in modules.items()}
        if ranks.first:
            notes = {"settings": settings, "step": step, "best": best, "log_bytes": log.size()}
            save_checkpoint(out, states, optimizer, notes)

    log = open_log(out, log_bytes, config.track, settings, start) if ranks.first else NoLog()
    batches = sources.batches(sampler, method.draw_weights(), config.seed, start, ranks)
    steps = config.steps * method.rounds
    with StopRequest() as stop, log, RunProgress(config.method, steps, start, ranks.first) as show:
        for step in range(start, steps):
            with repeatable(fabric.device):
                if step % config.steps == 0:
                    method.on_round_start(step // config.steps, embed)
                if step % look_every == 0:
                    before = method.draw_weights()
                    method.on_epoch_start(embed)
                    if (weights := method.draw_weights()) is not before:  # what was decoded ahead is given up
                        batches = sources.batches(sampler, weights, config.seed, step, ranks)
            batch = next(batches)
            torch.manual_seed(
                _step_seed(config.seed, step)
            )  # of what layers draw themselves, such as dropout
            method.train()
            set_learning_rate(optimizer, config, step % config.steps)

            guard.remember()
            with repeatable(fabric.device):
                with ranks.gathering():
                    loss, kept = learner(batch.images, batch.labels, batch.index)
                learned = method.learns_from_rejected or bool(kept.any())
                if learned:
                    optimizer.zero_grad()
                    fabric.backward(loss)
            if learned:  # else there is nothing to learn from: no update, nothing remembered
                ranks.average_gradients(method)
            # A bad step is left out, as if it had not been.
            if guard.accepts(loss if learned else None, step + 1):
                if learned:
                    optimizer.step()
                    method.on_update()
                tally.add(loss if learned else None, kept, batch.index)

            show.step(len(batch.labels))
            done = step + 1
            finished = done == steps
            if done % config.log_every == 0 or finished:
                rate, skipped = method.noise_rate_estimate, int(guard.skipped) or None
                record = {"step": done, **tally.take(method.decided())}
                record |= {"noise_rate_estimate": rate, "skipped_steps": skipped}
                log.write(record)
                show.record(record)
            measured = done > steps - config.steps and (done % config.validate_every == 0 or finished)
            if sources.validation is not None and measured:
                precision = validate(method.networks()["model"], sources.validation, ranks)
                log.write({"step": done, "validation_precision_at_1": precision})
                show.record({"validation_precision_at_1": precision})
                if precision is None or precision >= best:  # of those that nothing is known of, the last
                    best = best if precision is None else precision
                    if ranks.first:
                        save_networks(method, out)
            stopped_by = ranks.agree(stop.signal)  # read once: a signal may come at any moment
            if stopped_by is not None or done % config.checkpoint_every == 0 or finished:
                checkpoint(done)
            if stopped_by is not None and not finished:
                raise RunStopped(stopped_by, done, out)

    # Not before: a checkpoint of an earlier version, which does not name the splits, can be gone on with.
    settings["splits"] = [] if table.splits is None else np.unique(table.splits).tolist()
    with repeatable(fabric.device):
        return finish(out, method, sources, tally, settings, best, ranks)


def make_optimizer(method: Method, config: TrainConfig) -> Optimizer:
    """Adam or AdamW, with a rate of its own for proxies; `peak` of a group is its highest learning rate."""
    proxies = {id(parameter) for parameter in method.proxies()}
    network = [parameter for parameter in method.parameters() if id(parameter) not in proxies]
    groups: list[dict[str, Any]] = [{"params": network, "peak": config.lr}]
    if proxies:
        groups.append({"params": method.proxies(), "peak": config.proxy_lr, "weight_decay": 0.0})
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.lr, weight_decay=config.weight_decay)


def set_learning_rate(optimizer: Optimizer, config: TrainConfig, step: int) -> None:
    """Linear warm-up, then a cosine to zero: a function of the step in its round alone."""
    warm = min(1.0, (step + 1) / max(config.lr_warmup, 1))
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))


def _step_seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence((seed, step, 2)).generate_state(1)[0])
