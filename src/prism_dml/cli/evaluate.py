"""``prism evaluate``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism_dml.cli.embed import embed_table
from prism_dml.cli.output import print_json, print_table, write_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from prism_dml.data import Embedded, ImageTable

logger = logging.getLogger("prism_dml")

INTERVAL = 0.95


def evaluate(
    run: Path,
    data: str,
    *,
    split: str | None = None,
    json: Path | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    workers: int = 0,
    max_unreadable: float = 0.01,
    device: str = "auto",
) -> None:
    """Measure how well a trained model retrieves images of classes it has never seen.

    Every image of the split is a query for the others. True labels are used where the data has them.
    Images that are the only one of their class cannot be found; they are left out as queries and counted.
    Whether classes are new to the model is judged by their names, against those in the run's run.json: a line warns
    of classes that it has learned from.

    Args:
        run: Folder of a training run or of a model.
        data: Folder of class folders, CSV, or parquet, on disk or at a URL (s3://, gs://, https:// ...).
        split: Split of the data to measure on; test if not given, or all of the data if it has no splits.
        json: File to write the numbers to as JSON; - prints them instead of the table.
        seed: Of the bootstrap over queries that gives the 95 % intervals.
        batch_size: Images at once; null: 256 on a GPU, fewer on a CPU, whose cache they must fit into.
        workers: Processes that decode large images.
        max_unreadable: Share of the images, in [0, 1], that may be unreadable; they are named and left out.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        ValueError: the model or the data cannot be read, there is no such split, there are not two classes, or no
            image has another of its class.
        OSError: the file cannot be written, which is tried before anything is embedded.
    """
    from prism_dml.data import place, read_table, refuse_input, refuse_overwriting
    from prism_dml.files import refuse_unwritable
    from prism_dml.models import load
    from prism_dml.training.result import run_files

    model, whole = load(run), read_table(data)
    table = whole.split("test") if split is None else whole.select(whole.members(split)).compact()
    _refuse_one_class(table)
    if json is not None and str(json) != "-":
        refuse_input(json, place(data), whole)
        refuse_overwriting(json, run_files(run))
        refuse_unwritable(json)
    _warn_of_known(run, table.classes)
    embedded = embed_table(model, table, batch_size, workers, max_unreadable, device)
    _refuse_one_class(embedded.table)
    metrics, intervals = measure(embedded, seed)
    used_split = None if table.splits is None else split or "test"
    result = {"run": str(run), "data": data, "split": used_split, "seed": seed}
    result |= metrics | {"unreadable": len(table) - len(embedded.table), "intervals": intervals}
    if json is not None and str(json) == "-":
        print_json(result)
        return
    if json is not None:
        write_json(result, json)
    skipped = f", {metrics['num_skipped']:,} skipped" if metrics["num_skipped"] else ""
    ranges = {name: f"{low:.4f} to {high:.4f}" for name, (low, high) in intervals.items()}
    rows = [(title, f"{metrics[name]:.4f}", ranges.get(name, "")) for name, title in _TITLES.items()]
    title = f"{run} on {data}: {metrics['num_queries']:,} queries{skipped}"
    print_table(title, ("Measure", "Value", "95 % interval"), rows)


def _refuse_one_class(table: ImageTable) -> None:
    """ValueError if all images are of one class: whatever is found is right."""
    classes = set(_truth(table).tolist()) - {-1}
    if len(classes) == 1:
        raise ValueError(f"2 classes or more are needed, the data has 1: {table.classes[classes.pop()]}")


def _truth(table: ImageTable) -> NDArray[np.int64]:
    """The true labels (N,) where they are known, -1: none of the classes; else the given ones."""
    return table.labels if table.clean_labels is None else table.clean_labels


_TITLES = {
    "precision_at_1": "Precision@1",
    "r_precision": "R-Precision",
    "map_at_r": "MAP@R",
    "recall_at_2": "Recall@2",
    "recall_at_4": "Recall@4",
    "recall_at_8": "Recall@8",
    "macro_precision_at_1": "Precision@1, mean over classes",
    "macro_r_precision": "R-Precision, mean over classes",
    "macro_map_at_r": "MAP@R, mean over classes",
}


def _warn_of_known(run: Path, classes: Sequence[str]) -> None:
    """Say how many of the classes have names of classes that a run has learned from, if it tells."""
    from prism_dml.training.result import RUN, read_run

    if not (run / RUN).is_file():
        return
    learned = read_run(run).get("classes")
    known = set(classes) & set(map(str, learned if isinstance(learned, list) else []))
    if known:
        logger.warning(
            "%d of %d classes are not new to %s: it has learned from classes of their names",
            len(known),
            len(classes),
            run,
        )


def measure(embedded: Embedded, seed: int) -> tuple[dict[str, Any], dict[str, tuple[float, float]]]:
    """Retrieval among the images themselves, by their true labels where these are known.

    Args:
        embedded: N embeddings and their samples; those whose true class is none of the classes are left out.
        seed: of the bootstrap.

    Returns:
        The measures of `prism_dml.retrieval_metrics`, and the 95 % interval of each mean over queries.

    Raises:
        ValueError: no image has another of its class.
    """
    from prism_dml.retrieval import bootstrap_interval, retrieval_metrics, retrieval_scores

    vectors, labels = embedded.vectors, _truth(embedded.table)
    known = labels >= 0
    vectors, labels = vectors[known], labels[known]
    metrics = retrieval_metrics(vectors, labels)
    scores = retrieval_scores(vectors, labels)
    return metrics, {name: bootstrap_interval(values, seed, INTERVAL) for name, values in scores.items()}
