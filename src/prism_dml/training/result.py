"""What a finished run leaves behind."""

from __future__ import annotations

import json
import math
import platform
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

import prism_dml
from prism_dml.data import SCORES, Embedded, StreamingBatches, VectorBatches, embedding_rows
from prism_dml.files import replacing
from prism_dml.methods.base import Method
from prism_dml.models import load, save
from prism_dml.models.files import CHECKPOINT
from prism_dml.training.judgement import judge_samples, rate_judgement
from prism_dml.training.measure import embed_all
from prism_dml.training.precision import precision_on
from prism_dml.training.ranks import ALONE, Ranks
from prism_dml.training.sources import Sources
from prism_dml.training.tally import Tally

RUN = "run.json"
"""In a run's folder, when it is finished."""

EMBEDDINGS = "embeddings.parquet"
"""In a run's folder: what the saved model makes of the images of the run, which an audit need not embed again."""


def run_files(run: Path) -> list[Path]:
    """What a command that reads a run, or a model, must not write over."""
    return [run, run / RUN, run / EMBEDDINGS, run / CHECKPOINT, *run.glob("model*"), *run.glob("*/model*")]


_HANDED_OVER = dict(
    zip(("clean_probability", "suggested_label", "suggested_probability"), SCORES, strict=True)
)


def save_networks(method: Method, out: Path) -> None:
    """Write each of a method's networks into a folder of its own."""
    for name, network in method.networks().items():
        save(network, out / name)


def finish(
    out: Path,
    method: Method,
    sources: Sources,
    tally: Tally,
    settings: dict[str, Any],
    best: float,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Write what a finished run leaves behind, and remove its checkpoint; the result, as in run.json.

    Its "images" are the readable ones that were there to learn from, where that is known.
    """
    if sources.validation is None and ranks.first:
        save_networks(method, out)
    result: dict[str, Any] = {"steps": settings["steps"], "last_decisions": tally.final(method.decided())}
    if not isinstance(sources.train, StreamingBatches):  # a stream has what cannot be read, too
        result["images"] = len(sources.train.table)
    if sources.validation is not None:
        result["validation_precision_at_1"] = best if math.isfinite(best) else None
    if method.selects:
        seen = embed_all(method.observer(), sources.train, ranks)
        judged, rate = judge_samples(method, seen, sources.train.table)
        result["images"] = len(judged)
        if ranks.first:
            with replacing(out / "samples.parquet") as temporary:
                judged.to_parquet(temporary, index=False)
        result["noise_rate_estimate"] = rate
        if sources.train.table.is_noisy is not None:
            result["judgement"] = rate_judgement(judged, ~sources.train.table.is_noisy)
        _hand_over(out, sources, seen[:, : method.embedding_dim], judged, ranks)
    if ranks.first:
        computed_in = precision_on(next(method.parameters()).device.type, settings["precision"])
        _write_run(out, sources, settings | {"computed_in": computed_in}, result)
    return result


def _hand_over(out: Path, sources: Sources, embeddings: Tensor, judged: pd.DataFrame, ranks: Ranks) -> None:
    """Write the embeddings of all images of the run by the model that is saved, unreadable images left out.

    Beside them stand the probabilities of the training labels, if they are calibrated, for an audit to go by.

    Args:
        out: folder of the run.
        sources: its images.
        embeddings: (N, D) of the training images by the last network.
        judged: see `judge_samples`.
        ranks: processes that share the work.
    """
    seen = [(sources.train, embeddings)]
    if sources.validation is not None:  # the saved model is the best one, which may not be the last
        best = load(out / "model").to(embeddings.device)
        if isinstance(sources.train, VectorBatches):
            best.freeze()
        seen = [(images, embed_all(best, images, ranks)) for images in (sources.train, sources.validation)]
    if not ranks.first:
        return
    rows = []
    for images, vectors in seen:
        readable = (vectors != 0).any(dim=1).cpu()
        embedded = Embedded(vectors.cpu()[readable], images.table.select(readable.numpy()))
        scores = None
        if images is sources.train and "suggested_probability" in judged:
            there = readable.nonzero().squeeze(1).numpy()
            scores = judged.loc[there, list(_HANDED_OVER)].rename(columns=_HANDED_OVER)
        rows.append(embedding_rows(embedded, scores))
    with replacing(out / EMBEDDINGS) as temporary:
        pq.write_table(pa.concat_tables(rows, promote_options="default"), temporary)


def read_run(folder: Path) -> dict[str, Any]:
    """What a finished run has written of itself: result, settings, versions, classes; ValueError if it is damaged."""
    file = folder / RUN
    try:
        document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        is_whole = isinstance(document["result"]["steps"], int) and isinstance(document["settings"], dict)
    except (ValueError, KeyError, TypeError):
        is_whole = False
    if not is_whole:
        raise ValueError(f"{file}: not the description of a run")
    return document


def _write_run(out: Path, sources: Sources, settings: dict[str, Any], result: dict[str, Any]) -> None:
    """Write run.json, with which the run is finished, and remove the checkpoint."""
    versions = {
        "prism_dml": prism_dml.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    document = {
        "result": result,
        "settings": settings,
        "versions": versions,
        "classes": sources.train.table.classes,
    }
    with replacing(out / RUN) as temporary:
        temporary.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / CHECKPOINT).unlink(missing_ok=True)
