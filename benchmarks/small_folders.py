"""What is a folder of a few dozen or a few hundred images worth, a third of whose labels is wrong?

    PRISM_DATA=folder python benchmarks/small_folders.py --out benchmarks/small_folders [--workers 2]

Needs grocery.parquet in $PRISM_DATA. Of its training split so many classes and images of each are drawn, 30 % of the
labels are made wrong, and each method is trained from scratch with the settings that `prism train` has by default, but
for 1,000 steps, in bf16, without validation; tested on the whole test split, whose classes are not in training. A
finished run is one line of results.jsonl and is not run again.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from resumed import read_results, run_all

from prism_dml.benchmark.machine import device_name, versions
from prism_dml.benchmark.table import spread
from prism_dml.data import Augment, corrupt_table, open_images, read_table
from prism_dml.models import load
from prism_dml.retrieval import retrieval_metrics
from prism_dml.training import TrainConfig, train
from prism_dml.training.measure import embed_all

FOLDERS = {"4 x 12": (4, 12), "10 x 30": (10, 30)}
"""Classes, and images of each (of a class that has fewer, all)."""

RATE, STEPS, SEEDS = 0.3, 1000, (0, 1, 2)
METHODS = ("refract", "prism-mcl", "mcl", "oracle", "refract-oracle")
KEYS = ("folder", "method", "seed")
COLUMNS = {
    "P@1": "precision_at_1",
    "MAP@R": "map_at_r",
    "noise estimated": "estimate",
    "AUROC": "auroc",
    "purity": "purity",
    "clean recall": "clean_recall",
    "s": "seconds",
}
MEASURED = ("precision_at_1", "map_at_r", "seconds")
"""Columns that say nothing of the training labels."""


def run(job: dict) -> dict:
    """Train one method on one folder."""
    torch.set_num_threads(1)
    table = read_table(Path(os.environ["PRISM_DATA"], "grocery.parquet"))
    noisy = corrupt_table(
        draw(table.split("train"), *FOLDERS[job["folder"]], job["seed"]), "symmetric", RATE, job["seed"]
    )
    config = TrainConfig(
        method=job["method"], steps=STEPS, seed=job["seed"], validation=0, workers=0, precision="bf16-mixed"
    )
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        result = train(noisy, config, Path(folder) / "run")
        seconds = time.monotonic() - start
        model = load(Path(folder) / "run")
    test = open_images(table.split("test"), model.config["image_size"], Augment("none"))
    metrics = retrieval_metrics(embed_all(model, test), torch.from_numpy(test.table.labels))
    judged = result.get("judgement") or {}
    return (
        job
        | {name: metrics[name] for name in ("precision_at_1", "map_at_r")}
        | {name: judged.get(name) for name in ("auroc", "purity", "clean_recall")}
        | {"images": len(noisy), "wrong": float(noisy.is_noisy.mean())}
        | {"estimate": result.get("noise_rate_estimate"), "seconds": round(seconds)}
        | {"machine": f"{device_name('cpu', config.precision)}; {versions()}"}
    )


def draw(table, classes: int, each: int, seed: int):
    """So many classes of a table, and images of each."""
    generator = np.random.default_rng(seed)
    chosen = generator.permutation(np.unique(table.labels))[:classes]
    rows = [generator.permutation(np.nonzero(table.labels == k)[0])[:each] for k in chosen]
    return table.select(np.isin(np.arange(len(table)), np.concatenate(rows)))


def write_table(out: Path, results: list[dict]) -> None:
    lines = [
        "# Small folders",
        "",
        "    python benchmarks/small_folders.py --out benchmarks/small_folders",
        "",
    ]
    lines += [
        f"Photographs of Grocery, {RATE:.0%} of the labels wrong at random, from scratch, {STEPS} steps, bf16 or as "
        "said, no validation, else the settings of `prism train`; mean ± standard deviation over the seeds. Retrieval "
        "among the images of the test split, whose classes are not in training; AUROC, purity and clean recall are of "
        "the judgement when training ends; oracles see right labels only, and judge none.",
        "",
        *machines(results),
        "",
    ]
    for name in FOLDERS:
        mine = [r for r in results if r["folder"] == name]
        if not mine:
            continue
        images, wrong = mean(r["images"] for r in mine), mean(r["wrong"] for r in mine)
        lines += [f"## {name}: {images:.0f} images, {wrong:.1%} wrong", ""]
        lines += ["| method | seeds | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
        for method in METHODS:
            runs = [r for r in mine if r["method"] == method]
            if runs:
                cells = [
                    column(runs, key) if key in MEASURED or "oracle" not in method else ""
                    for key in COLUMNS.values()
                ]
                lines.append("| " + " | ".join([method, str(len(runs)), *cells]) + " |")
        lines.append("")
    (out / "table.md").write_text("\n".join(lines))


def machines(results: list[dict]) -> list[str]:
    """A line for each machine, with the methods that ran on it."""
    ran: dict[str, set[str]] = {}
    for r in results:
        ran.setdefault(r["machine"], set()).add(r["method"])
    return [f"- {', '.join(m for m in METHODS if m in ran[machine])}: {machine}" for machine in sorted(ran)]


def column(runs: list[dict], key: str) -> str:
    return spread([r[key] for r in runs if r[key] is not None], 0 if key == "seconds" else 3)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "results.jsonl"
    done = {tuple(r[key] for key in KEYS) for r in read_results(file)}
    jobs = [
        dict(zip(KEYS, (folder, method, seed), strict=True))
        for seed in SEEDS
        for folder in FOLDERS
        for method in METHODS
        if (folder, method, seed) not in done
    ]
    run_all(run, jobs, file, arguments.workers, KEYS, lambda results: write_table(arguments.out, results))


if __name__ == "__main__":
    main()
