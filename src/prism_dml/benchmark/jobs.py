"""From a protocol to single runs, each known by everything that defines it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from prism_dml.benchmark.protocol import KNOWN, RAW_PIXELS, Block, DataSet, Protocol, Row, has_proxies
from prism_dml.training.config import TrainConfig

Result = dict[str, Any]
Choice = dict[str, float]

WITHOUT_EFFECT = ("accelerator", "cache", "checkpoint_every", "devices", "log_every", "seed", "workers")
"""Settings that say how a run is carried out, not what comes out; and the seed, which a job has beside them."""
VALIDATIONS = 5
"""Validations in a tuning run: enough for a learning curve."""


@dataclass(frozen=True)
class Job:
    """A run of the grid, or of the tuning.

    Args:
        kind: run or tuning.
        data: the data set's name.
        path, test: where it is; see `DataSet`.
        noise, rate: its wrong labels; see `Block`.
        row: the row's name.
        method: of the row.
        labels: of the row.
        settings: of the training.
        seed: of noise and training.
    """

    kind: Literal["run", "tuning"]
    data: str
    path: str
    test: str | None
    noise: str
    rate: float | None
    row: str
    method: str
    labels: str
    settings: dict[str, Any]
    seed: int

    @property
    def key(self) -> str:
        """What tells it from runs that differ in anything but names and the manner of running."""
        known = asdict(self)
        for name in ("data", "row"):
            del known[name]
        known["settings"] = {k: v for k, v in self.settings.items() if k not in WITHOUT_EFFECT}
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def title(self) -> str:
        """The run in a few words."""
        rate = "" if self.rate is None else f" {self.rate:.0%}"
        tried = ", ".join(f"{k} {self.settings[k]:g}" for k in ("lr", "proxy_lr") if k in self.settings)
        what = f"{self.row} ({tried})" if self.kind == "tuning" else self.row
        return f"{self.data}, {self.noise}{rate}, seed {self.seed}: {what}"


@dataclass(frozen=True)
class Place:
    """A place of the grid and the run that fills it; None: no learning rate could be chosen."""

    data: str
    noise: str
    rate: float | None
    row: Row
    seed: int
    job: Job | None


def tuning_jobs(protocol: Protocol, data: DataSet, row: Row) -> list[Job]:
    """The runs that choose a row's learning rate, those of its tuning group; none if it has a rate of its own."""
    rule = protocol.tuning
    if rule is None or not row.is_tuned:
        return []
    first = protocol.representative(row)
    whole = protocol.config(data, first)
    steps = max(1, round(rule.steps * whole.steps))
    changes = {"validation": rule.validation, "steps": steps, "validate_every": max(1, steps // VALIDATIONS)}
    block = Block(rule.noise, rule.rate, [rule.seed])
    return [
        _job(protocol, data, first, block, rule.seed, {**changes, **candidate}, "tuning")
        for candidate in rule.candidates(first.method)
    ]


def all_tuning_jobs(protocol: Protocol) -> list[Job]:
    """The runs by which the learning rates of all rows in the grid are chosen, each once."""
    return once(job for _, data, row, _ in _places(protocol) for job in tuning_jobs(protocol, data, row))


def grid_jobs(protocol: Protocol, chosen: Callable[[DataSet, Row], Choice | None]) -> list[Place]:
    """The places of the grid in the order of running, each with its run.

    Several places may share a run: raw pixels, and all labels right, are the same at every noise.

    Args:
        protocol: the comparison.
        chosen: the learning rates of a row on a data set, or None where they cannot be chosen: no run then.
    """
    places: dict[tuple[str, str, float | None, str, int], Place] = {}
    for block, data, row, seed in _places(protocol):
        choice = chosen(data, row)
        job = None if choice is None else _job(protocol, data, row, block, seed, choice, "run")
        place = Place(data.name, block.noise, block.rate, row, seed, job)
        places.setdefault((data.name, block.noise, block.rate, row.name, seed), place)
    return list(places.values())


def choose(jobs: list[Job], results: dict[str, Result]) -> Choice | None:
    """The rates with the best Precision@1 on the validation classes at the end of the run; the first of equals.

    Args:
        jobs: of one tuning group; none: there is nothing to choose.
        results: finished runs by key.

    Returns:
        The settings, or None if no run has succeeded.
    """
    if not jobs:
        return {}
    finished = [job for job in jobs if job.key in results]
    if not finished:
        return None
    best = max(finished, key=lambda job: results[job.key]["validation"][-1][1])
    return {name: best.settings[name] for name in ("lr", "proxy_lr") if name in best.settings}


def _places(protocol: Protocol) -> Iterable[tuple[Block, DataSet, Row, int]]:
    """Every place of the grid, in the order of running."""
    for block in protocol.grid:
        for seed in block.seeds:
            for data in protocol.data:
                for row in protocol.rows:
                    wanted = block.rows is None or row.name in block.rows
                    if (
                        wanted
                        and row.name not in block.without
                        and (block.data is None or data.name in block.data)
                    ):
                        yield block, data, row, seed


def _job(
    protocol: Protocol,
    data: DataSet,
    row: Row,
    block: Block,
    seed: int,
    changes: dict[str, Any],
    kind: Literal["run", "tuning"],
) -> Job:
    config = protocol.config(data, row, **changes)
    settings = _differing(config)
    settings["lr"] = config.lr
    if row.method != RAW_PIXELS and has_proxies(row.method):
        settings["proxy_lr"] = config.proxy_lr
    else:
        settings.pop("proxy_lr", None)
    if {**protocol.recipe, **data.recipe, **row.settings}.get("noise_rate") == KNOWN:
        settings["noise_rate"] = KNOWN
    noise, rate, labels = block.noise, block.rate, row.labels
    if labels == "clean" and noise != "given":
        noise, rate, labels = "none", None, "given"  # the same run at every noise
    if row.method == RAW_PIXELS:
        noise, rate, labels, seed = "none", None, "given", 0
        settings = {name: value for name, value in settings.items() if name == "image_size"}
    return Job(
        kind, data.name, data.path, data.test, noise, rate, row.name, row.method, labels, settings, seed
    )


def _differing(config: TrainConfig) -> dict[str, Any]:
    """Settings that are not the default: a setting that is new tomorrow does not make today's runs others."""
    default = asdict(TrainConfig())
    return {
        name: value
        for name, value in asdict(config).items()
        if value != default[name] and name not in ("method", "seed")
    }


def once(jobs: Iterable[Job]) -> list[Job]:
    """The jobs without repetitions, in order."""
    first: dict[str, Job] = {}
    for job in jobs:
        first.setdefault(job.key, job)
    return list(first.values())
