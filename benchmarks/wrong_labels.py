"""How well are wrong labels found, and how honest are the scores? Beside it cleanlab, on the same embeddings.

    PRISM_DATA=folder python benchmarks/wrong_labels.py --out benchmarks/wrong_labels [--only grocery] [--rate 0.5]

Needs the extra `benchmark` (cleanlab) and omniglot, grocery, cifar100_sub and cifar10n_worse.parquet in $PRISM_DATA.
Trains MCL + PRISM with an estimated rate on the noisy training split, embeds that split, and asks each method which of
its labels are wrong. The rows are shuffled first: the files are in the order of the true classes, and scikit-learn's
folds, cut from unshuffled rows, would keep together what has the same truth and so give it away. A finished run is one
line of results.jsonl and is not run again. Embeddings are kept in --embeddings (outside the repository) if given, and
taken from there.
"""

import argparse
import functools
import json
import multiprocessing
import os
import platform
import shutil
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

import prism_dml
from prism_dml import find_label_issues
from prism_dml.audit import calibration_error, measure_reliability
from prism_dml.benchmark.table import spread
from prism_dml.data import Augment, corrupt_table, open_images, read_table
from prism_dml.models import load
from prism_dml.training import TrainConfig, train
from prism_dml.training.measure import embed_all

COMMON = TrainConfig(
    method="prism-mcl",
    noise_rate="auto",
    validation=0,
    precision="bf16-mixed",
    lr=1e-3,
    embedding_dim=128,
    workers=0,
    image_size=32,
    augment="photo",
    steps=2000,
)
RECIPES = {
    "omniglot": replace(COMMON, augment="drawing", lr=3e-3),
    "grocery": replace(COMMON, image_size=48),
    "cifar100_sub": COMMON,
    "cifar10n_worse": COMMON,
}
MADE = (("symmetric", 0.2), ("symmetric", 0.5), ("small-cluster", 0.25), ("pair", 0.3))
GRID = [(data, *noise) for data in RECIPES if data != "cifar10n_worse" for noise in MADE]
GRID += [("cifar10n_worse", "human", None)]

NEIGHBOURS = 10  # cleanlab's own choice for its search of label issues by neighbours
COLUMNS = ("auroc", "average_precision", "f1", "calibration_error", "rate", "seconds")
HEADER = ("AUROC", "average precision", "F1 at its own cut", "calibration error", "estimated rate", "s")


def ours(embeddings: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Score of each label (high = right), which are called wrong, and the estimated share of wrong labels."""
    issues = find_label_issues(embeddings, labels)
    return issues.label_score.to_numpy(), issues.is_label_issue.to_numpy(), issues.attrs["noise_rate"]


def cleanlab_of(
    classifier, embeddings: np.ndarray, labels: np.ndarray
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
    "Prism": ours,
    "cleanlab, neighbours": functools.partial(
        cleanlab_of, KNeighborsClassifier(NEIGHBOURS, metric="cosine", algorithm="brute")
    ),
    "cleanlab, logistic regression": functools.partial(cleanlab_of, LogisticRegression(max_iter=1000)),
}


def run(job: dict) -> list[dict]:
    """Train, embed and ask every method."""
    torch.set_num_threads(job["threads"])
    embeddings, labels, wrong = embedded(job)
    order = np.random.default_rng(job["seed"]).permutation(len(labels))
    embeddings, labels, wrong = embeddings[order], labels[order], wrong[order]
    lines = []
    for name, method in METHODS.items():
        start = time.monotonic()
        score, flagged, rate = method(embeddings, labels)
        seconds = time.monotonic() - start
        measured = measure(np.asarray(score, float), flagged, rate, wrong) | {"seconds": round(seconds, 1)}
        lines.append(
            {key: job[key] for key in KEYS} | {"method": name, "wrong": float(wrong.mean())} | measured
        )
    return lines


def embedded(job: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings of the training split by a network trained on its noisy labels, those labels, and which are wrong."""
    data, kind, rate, seed = (job[key] for key in KEYS)
    kept = job["embeddings"] and Path(job["embeddings"], f"{data}-{kind}-{rate}-{seed}.npz")
    if kept and kept.exists():
        arrays = np.load(kept)
        return arrays["embeddings"], arrays["labels"], arrays["wrong"]
    table = read_table(Path(os.environ["PRISM_DATA"], f"{data}.parquet"))
    noisy = table if kind == "human" else corrupt_table(table, kind, rate, seed)
    config = replace(RECIPES[data], seed=seed)
    folder = Path(tempfile.mkdtemp(prefix="wrong_labels_"))
    try:
        train(noisy, config, folder / "run")
        model = load(folder / "run")
    finally:
        shutil.rmtree(folder)
    images = open_images(noisy.split("train"), config.image_size, Augment("none"))
    embeddings = embed_all(model, images).float().numpy()
    labels, wrong = images.table.labels, images.table.is_noisy
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.savez(kept, embeddings=embeddings, labels=labels, wrong=wrong)
    return embeddings, labels, wrong


def measure(score: np.ndarray, flagged: np.ndarray, rate: float, wrong: np.ndarray) -> dict:
    return {
        "auroc": roc_auc_score(~wrong, score),
        "average_precision": average_precision_score(wrong, -score),
        "f1": f1_score(wrong, flagged),
        "calibration_error": calibration_error(measure_reliability(score, ~wrong)),
        "rate": rate,
    }


def write_table(out: Path, results: list[dict]) -> None:
    lines = [
        "# Wrong labels found",
        "",
        "    python benchmarks/wrong_labels.py --out benchmarks/wrong_labels",
        "",
    ]
    lines += [
        f"Python {platform.python_version()}, torch {torch.__version__}, prism-dml {prism_dml.__version__}, "
        f"{os.cpu_count()} CPU cores. Mean ± standard deviation over the seeds. All methods are given the same "
        f"embeddings, in shuffled order; the calibration error is over 15 equally wide bins. Rows were run at "
        "different times, some on a busy machine: seconds tell no more than the order of magnitude.",
        "",
    ]
    for data, kind, rate in GRID:
        mine = [r for r in results if (r["data"], r["kind"], r["noise_rate"]) == (data, kind, rate)]
        if not mine:
            continue
        share = mean(r["wrong"] for r in mine)
        lines += [f"## {data}, {kind}, {share:.1%} wrong", ""]
        lines += ["| method | seeds | " + " | ".join(HEADER) + " |", "|" + "---|" * (len(HEADER) + 2)]
        for method in METHODS:
            runs = [r for r in mine if r["method"] == method]
            cells = [spread([r[column] for r in runs], 1 if column == "seconds" else 3) for column in COLUMNS]
            lines.append("| " + " | ".join([method, str(len(runs)), *cells]) + " |")
        lines.append("")
    (out / "table.md").write_text("\n".join(lines))


KEYS = ("data", "kind", "noise_rate", "seed")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", choices=RECIPES, help="one data set")
    parser.add_argument("--rate", type=float, help="one noise rate")
    parser.add_argument("--embeddings", help="folder to keep embeddings in")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "results.jsonl"
    results = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {tuple(r[key] for key in KEYS) for r in results}
    rest = {
        "threads": max(1, (os.cpu_count() or 1) // arguments.workers),
        "embeddings": arguments.embeddings,
    }
    jobs = [
        dict(zip(KEYS, (data, kind, rate, seed), strict=True)) | rest
        for seed in range(arguments.seeds)
        for data, kind, rate in GRID
        if (data, kind, rate, seed) not in done
        and arguments.only in (None, data)
        and arguments.rate in (None, rate)
    ]
    with multiprocessing.get_context("spawn").Pool(arguments.workers, maxtasksperchild=1) as pool:
        for lines in pool.imap_unordered(run, jobs):
            results += lines
            with file.open("a") as log:
                log.writelines(json.dumps(line) + "\n" for line in lines)
            for line in lines:
                print(*(line[key] for key in KEYS), line["method"], f"AUROC {line['auroc']:.4f}", flush=True)
            write_table(arguments.out, results)


if __name__ == "__main__":
    main()
