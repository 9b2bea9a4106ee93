"""How well are wrong labels found, and how honest are the scores? Beside it cleanlab.

    PRISM_DATA=folder python benchmarks/wrong_labels.py --out benchmarks/wrong_labels [--only grocery] [--workers 2]

Needs the extra `benchmark` (cleanlab); omniglot, grocery, cifar100_sub and cifar10n_worse.parquet in $PRISM_DATA, and
beside them the weights that benchmarks/imagenet_weights.py fetches. Embeddings of the noisy training split are had in
two ways: from a network that MCL + PRISM, with an estimated rate, has trained from scratch on these labels, and from a
network with ImageNet weights that knows nothing of them. Each method is asked which of the labels are wrong: by the
embeddings; or, as "Prism, train and audit", by what `prism train` finds by default on the same images and labels (from
scratch, or a head on the same frozen network). The rows are shuffled first: the files are in the order of the true
classes, and scikit-learn's folds, cut from unshuffled rows, would keep together what has the same truth and so give it
away. A finished run of a method is one line of results.jsonl and is not run again. Embeddings are kept in --embeddings
(outside the repository) if given, and taken from there.
"""

import argparse
import functools
import json
import multiprocessing
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np
import pandas as pd
import torch
from resumed import read_results
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

import prism_dml
from prism_dml import find_label_issues
from prism_dml.audit import calibration_error, measure_reliability
from prism_dml.benchmark.frozen import embedded_once
from prism_dml.benchmark.table import spread
from prism_dml.data import ImageTable, corrupt_table, read_embeddings, read_table
from prism_dml.data.vectors import open_vectors
from prism_dml.files import replacing
from prism_dml.training import TrainConfig, train
from prism_dml.training.result import EMBEDDINGS

COMMON = TrainConfig(validation=0, precision="bf16-mixed", workers=0, image_size=32)
RECIPES = {
    "omniglot": replace(COMMON, augment="drawing"),
    "grocery": replace(COMMON, image_size=48),
    "cifar100_sub": COMMON,
    "cifar10n_worse": COMMON,
}
MCL_PRISM = {"method": "prism-mcl", "noise_rate": "auto"}
LR = {"omniglot": 3e-3}  # of MCL + PRISM
WEIGHTS = "efficientnet_lite0.safetensors"
IMAGENET = {
    "backbone": "tf_efficientnet_lite0",
    "freeze_backbone": True,
    "image_size": None,
    "augment": "none",
    "precision": "32-true",
}
MADE = (("symmetric", 0.2), ("symmetric", 0.5), ("small-cluster", 0.25), ("pair", 0.3))
GRID = [
    (source, data, *noise)
    for source in ("MCL + PRISM", "ImageNet")
    for data in RECIPES
    if (source, data) != ("ImageNet", "omniglot")  # characters, of which it knows little
    for noise in ([("human", None)] if data == "cifar10n_worse" else MADE)
]

NEIGHBOURS = 10  # cleanlab's own choice for its search of label issues by neighbours
COLUMNS = ("auroc", "average_precision", "f1", "calibration_error", "rate", "seconds")
HEADER = ("AUROC", "average precision", "F1 at its own cut", "calibration error", "estimated rate", "s")
KEYS = ("source", "data", "kind", "noise_rate", "seed")
TRAINED = "Prism, train and audit"


def ours(embeddings: np.ndarray, labels: np.ndarray, scores=None) -> tuple[np.ndarray, np.ndarray, float]:
    """Score of each label (high = right), which are called wrong, and the estimated share of wrong labels."""
    issues = find_label_issues(embeddings, labels, scores)
    return issues.label_score.to_numpy(), issues.is_label_issue.to_numpy(), issues.attrs["noise_rate"]


def cleanlab_of(
    classifier, embeddings: np.ndarray, labels: np.ndarray, scores: None = None
) -> tuple[np.ndarray, np.ndarray, float]:
    """Confident learning on probabilities of a classifier that has not seen the sample (5-fold cross-validation)."""
    from cleanlab.count import estimate_joint
    from cleanlab.filter import find_label_issues as confident_learning
    from cleanlab.rank import get_label_quality_scores

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes of fewer than five samples
        beliefs = cross_val_predict(classifier, embeddings, labels, cv=5, method="predict_proba")
    joint = estimate_joint(labels, beliefs)
    return (
        get_label_quality_scores(labels, beliefs),
        confident_learning(labels, beliefs, n_jobs=1),
        1 - float(np.trace(joint)),
    )


METHODS = {
    TRAINED: ours,
    "Prism, audit": ours,
    "cleanlab, neighbours": functools.partial(
        cleanlab_of, KNeighborsClassifier(NEIGHBOURS, metric="cosine", algorithm="brute")
    ),
    "cleanlab, logistic regression": functools.partial(cleanlab_of, LogisticRegression(max_iter=1000)),
}


def run(job: dict) -> list[dict]:
    """Ask the methods that have not been asked about a data set under wrong labels."""
    torch.set_num_threads(job["threads"])
    table, config = prepared(job)
    order = np.random.default_rng(job["seed"]).permutation(len(table))
    labels, wrong = table.labels[order], table.is_noisy[order]
    lines = []
    for name in job["methods"]:
        start, scores = time.monotonic(), None
        if name == TRAINED:
            embeddings, scores = learned(table, config)
            scores = scores.iloc[order].reset_index(drop=True)
        else:
            embeddings = embedded(job, table, config)
            start = time.monotonic()
        score, flagged, rate = METHODS[name](embeddings[order], labels, scores)
        seconds = time.monotonic() - start
        measured = measure(np.asarray(score, float), flagged, rate, wrong) | {"seconds": round(seconds, 1)}
        lines.append(
            {key: job[key] for key in KEYS} | {"method": name, "wrong": float(wrong.mean())} | measured
        )
    return lines


def prepared(job: dict) -> tuple[ImageTable, TrainConfig]:
    """The training split under its wrong labels, and how `prism train` learns from it by default."""
    source, data, kind, rate, seed = (job[key] for key in KEYS)
    place = Path(os.environ["PRISM_DATA"])
    config = replace(RECIPES[data], seed=seed)
    table = read_table(place / f"{data}.parquet")
    if source == "ImageNet":
        config = replace(config, **IMAGENET, weights=str(place / WEIGHTS))
        table = embedded_once(table, place / f"{data}.parquet", config, "cpu", Path(job["embeddings"]))
    noisy = table if kind == "human" else corrupt_table(table, kind, rate, seed)
    return noisy.split("train"), config


def learned(table: ImageTable, config: TrainConfig) -> tuple[np.ndarray, pd.DataFrame]:
    """Embeddings (N, D) of its images that a run leaves, and its scores of their labels."""
    with tempfile.TemporaryDirectory(prefix="wrong_labels_") as folder:
        train(table, config, Path(folder, "run"))
        found = read_embeddings(Path(folder, "run", EMBEDDINGS))
    assert found.paths == table.paths
    return found.vectors, found.scores


def embedded(job: dict, table: ImageTable, config: TrainConfig) -> np.ndarray:
    """Embeddings (N, D) that are judged by themselves."""
    if job["source"] == "ImageNet":
        return open_vectors(table, max_unreadable=0).vectors.numpy()
    kept = Path(job["embeddings"], "-".join(str(job[key]) for key in KEYS[1:]) + ".npy")
    if not kept.exists():
        rate = LR.get(job["data"], 1e-3)
        embeddings = learned(table, replace(config, **MCL_PRISM, lr=rate))[0]
        with replacing(kept) as file, file.open("wb") as opened:
            np.save(opened, embeddings)
    return np.load(kept)


def measure(score: np.ndarray, flagged: np.ndarray, rate: float, wrong: np.ndarray) -> dict:
    return {
        "auroc": roc_auc_score(~wrong, score),
        "average_precision": average_precision_score(wrong, -score),
        "f1": f1_score(wrong, flagged),
        "calibration_error": calibration_error(measure_reliability(score, ~wrong)),
        "rate": rate,
    }


def by_method(runs: list[dict], methods: Iterable[str], columns: dict[str, str]) -> list[str]:
    """A table's lines: a row for each method that has runs, a column for each number by its name; None: empty."""
    lines = ["| method | seeds | " + " | ".join(columns.values()) + " |", "|" + "---|" * (len(columns) + 2)]
    for method in methods:
        mine = [run for run in runs if run["method"] == method]
        if not mine:
            continue
        cells = [
            ""
            if mine[0][name] is None
            else spread([run[name] for run in mine], 1 if name == "seconds" else 3)
            for name in columns
        ]
        lines.append("| " + " | ".join([method, str(len(mine)), *cells]) + " |")
    return [*lines, ""]


def write_table(out: Path, results: list[dict]) -> None:
    lines = [
        "# Wrong labels found",
        "",
        "    python benchmarks/wrong_labels.py --out benchmarks/wrong_labels",
        "",
    ]
    lines += [
        f"Python {platform.python_version()}, torch {torch.__version__}, prism-dml {prism_dml.__version__}, "
        f"{os.cpu_count()} CPU cores. Mean ± standard deviation over the seeds. All methods but the first are "
        "given the same embeddings, in shuffled order; the seconds of the first are those of its training, too. The "
        "calibration error is over 15 equally wide bins.",
        "",
    ]
    for cell in GRID:
        mine = [r for r in results if tuple(r[key] for key in KEYS[:-1]) == cell]
        if not mine:
            continue
        share = mean(r["wrong"] for r in mine)
        source, data, kind, _ = cell
        lines += [f"## {data}, {kind}, {share:.1%} wrong, embeddings by {source}", ""]
        lines += by_method(mine, METHODS, dict(zip(COLUMNS, HEADER, strict=True)))
    (out / "table.md").write_text("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", choices=RECIPES, help="one data set")
    parser.add_argument("--embeddings", help="folder to keep embeddings in")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "results.jsonl"
    results = read_results(file)
    done = {tuple(r[key] for key in (*KEYS, "method")) for r in results}
    jobs = []
    for seed in range(arguments.seeds):
        for cell in GRID:
            left = [method for method in METHODS if (*cell, seed, method) not in done]
            if left and arguments.only in (None, cell[1]):
                jobs.append(dict(zip(KEYS, (*cell, seed), strict=True)) | {"methods": left})
    threads = max(1, (os.cpu_count() or 1) // arguments.workers)
    with (
        tempfile.TemporaryDirectory(prefix="wrong_labels_") as folder,
        multiprocessing.get_context("spawn").Pool(arguments.workers, maxtasksperchild=1) as pool,
    ):
        shared = {"threads": threads, "embeddings": arguments.embeddings or folder}
        for lines in pool.imap_unordered(run, [job | shared for job in jobs]):
            results += lines
            with file.open("a") as log:
                log.writelines(json.dumps(line) + "\n" for line in lines)
            for line in lines:
                print(*(line[key] for key in KEYS), line["method"], f"AUROC {line['auroc']:.4f}", flush=True)
            write_table(arguments.out, results)


if __name__ == "__main__":
    main()
