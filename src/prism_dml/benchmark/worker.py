"""One run, in a process of its own: train, evaluate, leave a result."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prism_dml.benchmark.fields import from_yaml
from prism_dml.benchmark.frozen import VECTORS, embedded_once
from prism_dml.benchmark.jobs import Job
from prism_dml.benchmark.machine import device_name, versions
from prism_dml.benchmark.protocol import KNOWN, RAW_PIXELS
from prism_dml.benchmark.tables import resolve, test_table, training_table, tuning_table
from prism_dml.data import Augment, ImageBatches, ImageTable, open_images, open_vectors
from prism_dml.files import replacing
from prism_dml.methods.registry import find_method
from prism_dml.models import Embedder, load
from prism_dml.models.files import CHECKPOINT
from prism_dml.retrieval import retrieval_metrics
from prism_dml.training import TrainConfig, train
from prism_dml.training.measure import embed_all
from prism_dml.training.result import RUN, read_run

RESULT, LOG = "result.json", "log.txt"
METRICS = ("precision_at_1", "r_precision", "map_at_r", "recall_at_2", "recall_at_4", "recall_at_8")
NOT_JUDGED: dict[str, float | None] = dict.fromkeys(("purity", "clean_recall", "wrong_found", "auroc"))
CURVES = ("rejected", "purity", "clean_recall", "noise_rate_estimate")
SMALL_SIZE = 48
"""Side in pixels of the images of raw pixels where the recipe does not say."""
CURVE_POINTS = 50
"""Records of the log that a result keeps, at most."""


@dataclass(frozen=True)
class Slot:
    """What a run computes on.

    Args:
        accelerator: cpu or cuda.
        device: the visible GPU, as CUDA_VISIBLE_DEVICES names it; None for a CPU.
        threads: of the CPU.
    """

    accelerator: str
    device: str | None
    threads: int


def work(job: Job, folder: Path, data_root: Path, slot: Slot) -> None:
    """Do a job in this process, and write its result, or why it failed, into `folder`; what it prints goes to a log.

    A job that was stopped leaves a checkpoint and no result; done again in the same folder it goes on.
    """
    if hasattr(signal, "pthread_sigmask"):  # blocked by the parent, for the server between the two
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    if (folder / RESULT).is_file():  # finished, but its parent was killed before it looked
        return
    threading.Thread(target=_end_with_parent, daemon=True).start()
    log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if slot.device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = slot.device
    torch.set_num_threads(slot.threads)
    start = time.monotonic()
    try:
        result: dict[str, Any] = {"error": None, **run_job(job, folder, data_root, slot.accelerator)}
    except Exception as error:  # whatever it is: the other runs go on, and the record says it
        result = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        shutil.rmtree(folder / "run", ignore_errors=True)
    machine = device_name(slot.accelerator, job.settings.get("precision", "32-true"))
    result |= {"seconds": round(time.monotonic() - start, 1), "machine": machine}
    result["versions"] = versions()
    with replacing(folder / RESULT) as temporary:
        temporary.write_text(json.dumps(result), encoding="utf-8")


def run_job(job: Job, folder: Path, data_root: Path, accelerator: str) -> dict[str, Any]:
    """Train and evaluate.

    Args:
        job: the run.
        folder: the job's own; a run in folder/run is gone on with.
        data_root: folder that relative paths of data and weights start from.
        accelerator: cpu or cuda.

    Returns:
        `metrics` on the test split (for runs of the grid), `validation` [[step, Precision@1]] and `curves` over
        training, `noise`: the true share of wrong labels, `told` and `estimated`, `purity`, `clean_recall`,
        `wrong_found` and `auroc`: of the labels kept and rejected in the end; null where unknown.

    Raises:
        ValueError: the data cannot be read, or do not fit the job.
    """
    if job.method == RAW_PIXELS:
        size = job.settings.get("image_size") or SMALL_SIZE
        images = open_images(test_table(job, data_root), size, Augment("none"))
        return {"metrics": _metrics(_pixels(images), images.table)}
    table = (tuning_table if job.kind == "tuning" else training_table)(job, data_root)
    noisy = table.split("train").is_noisy
    noise = None if noisy is None else float(noisy.mean())
    settings = {**job.settings, "method": job.method, "seed": job.seed, "accelerator": accelerator}
    if settings.get("noise_rate") == KNOWN:
        settings["noise_rate"] = job.rate if noise is None else noise
        if settings["noise_rate"] is None:
            raise ValueError("the noise rate is not known: the data has no true labels and the block no rate")
    if settings.get("weights") is not None:
        settings["weights"] = str(resolve(settings["weights"], data_root))
    config: TrainConfig = from_yaml(TrainConfig, settings, "settings")
    if config.freeze_backbone:
        table = embedded_once(
            table, resolve(job.path, data_root), config, accelerator, folder.parent / VECTORS
        )
    run = folder / "run"
    if (run / RUN).is_file():  # trained, but not evaluated
        result = read_run(run)["result"]
    else:
        result = train(table, config, run, resume=(run / CHECKPOINT).is_file())
    method = find_method(job.method)
    facts = {"noise": noise, "told": config.noise_rate, "estimated": None, **NOT_JUDGED}
    if not method.clean_only:  # it has seen none of the wrong labels
        facts |= {"estimated": result.get("noise_rate_estimate")} | _selection(result, noise, method.selects)
    facts |= _history(run / "metrics.jsonl")
    if job.kind == "tuning":
        if not facts["validation"]:
            raise ValueError("the classes set aside for validation have no two images of a class")
        return facts
    model = load(run).to("cuda" if accelerator == "cuda" else "cpu")
    images = _test_images(job, config, model, data_root, accelerator, folder)
    return {"metrics": _metrics(embed_all(model, images), images.table), **facts}


def _test_images(
    job: Job, config: TrainConfig, model: Embedder, data_root: Path, accelerator: str, folder: Path
) -> ImageBatches:
    """The test split for a trained model, which is frozen if it was trained so."""
    look, table = model.transform, test_table(job, data_root)
    if config.freeze_backbone:
        model.freeze()
        where = resolve(job.test or job.path, data_root)
        table = embedded_once(table, where, config, accelerator, folder.parent / VECTORS)
        known = open_vectors(table, config.max_unreadable, accelerator)
        assert known is not None
        return known
    return open_images(
        table,
        look.image_size,
        Augment("none", look.mean, look.std),
        config.workers,
        config.max_unreadable,
        device=accelerator,
        resize_size=look.resize_size,
    )


def _metrics(embeddings: torch.Tensor, table: ImageTable) -> dict[str, float]:
    readable = (embeddings.abs().sum(dim=1) > 0).cpu()
    found = retrieval_metrics(embeddings[readable], torch.from_numpy(table.labels)[readable])
    return {name: round(found[name], 6) for name in METRICS}


def _pixels(images: ImageBatches) -> torch.Tensor:
    """(N, 3 x S x S) pixels in [0, 1], which retrieval brings to unit length."""
    look = Augment("none")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (look.mean, look.std))
    return torch.cat([(batch.images * std + mean).flatten(1) for batch in images.evaluate()])


def _selection(result: dict[str, Any], noise: float | None, selects: bool) -> dict[str, float | None]:
    """How right the labels are that were kept, the share of the wrong ones that were rejected, and the AUROC.

    By the trained model's judgement on every label; of methods that choose within batches only, by the last decision on
    each sample. Empty for methods that keep everything.
    """
    facts = result.get("judgement") or ({} if selects else result["last_decisions"])
    purity, recall, auroc = (facts.get(name) for name in ("purity", "clean_recall", "auroc"))
    if noise is None or purity is None or recall is None or (not selects and recall == 1):
        return NOT_JUDGED
    kept_clean = recall * (1 - noise)  # shares of all samples
    kept_wrong = kept_clean * (1 - purity) / purity if purity else float("nan")
    found = 1 - kept_wrong / noise if noise else float("nan")
    return {
        "purity": purity,
        "clean_recall": recall,
        "wrong_found": min(max(found, 0.0), 1.0) if np.isfinite(found) else None,
        "auroc": auroc,
    }


def _history(log: Path) -> dict[str, Any]:
    """The validation and the thinned curves of a run's log."""
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    name = "validation_precision_at_1"
    validation = [[record["step"], record[name]] for record in records if name in record]
    steps = [record for record in records if "loss" in record or "rejected" in record]
    steps = steps[:: -(-len(steps) // CURVE_POINTS) or 1]
    curves: dict[str, list[Any]] = {"step": [record["step"] for record in steps]}
    for curve in CURVES:
        values = [record.get(curve) for record in steps]
        if any(value is not None for value in values):
            curves[curve] = [None if value is None else round(value, 4) for value in values]
    return {"validation": validation, "curves": curves}


def _end_with_parent() -> None:
    """Leave when the parent is gone, killed perhaps: nobody waits for the result any more."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
