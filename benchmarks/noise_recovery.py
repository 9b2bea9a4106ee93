"""How much of what wrong labels cost does PRISM win back? Trains each row of the table and writes it.

    PRISM_DATA=folder python benchmarks/noise_recovery.py --out benchmarks/noise_recovery [--workers 2] [--only grocery]

Needs omniglot, grocery and cifar100_sub.parquet in $PRISM_DATA. A finished run is one line of results.jsonl and is not
run again, so that a run that was cut short goes on. The recipe (RECIPES) is one for all rows of a data set, but for the
learning rates of Refract (RATES), whose loss is another; nothing is chosen on the test split: the last checkpoint is
evaluated.
"""

import argparse
import functools
import os
import platform
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from resumed import read_results, run_all

import prism_dml
from prism_dml.benchmark.machine import device_name
from prism_dml.benchmark.table import spread
from prism_dml.data import Augment, ImageTable, corrupt_table, open_images, read_table
from prism_dml.models import load
from prism_dml.retrieval import retrieval_metrics
from prism_dml.training import TrainConfig, train
from prism_dml.training.measure import embed_all

COMMON = TrainConfig(validation=0, precision="bf16-mixed", lr=1e-3, embedding_dim=128, workers=0)
RECIPES = {
    "omniglot": replace(COMMON, image_size=32, augment="drawing", steps=5000, lr=3e-3),
    "grocery": replace(COMMON, image_size=48, augment="photo", steps=2000),
    "grocery, affine augmentation": replace(COMMON, image_size=48, augment="drawing", steps=1600),
    "omniglot, 136 characters": replace(COMMON, image_size=48, augment="drawing", steps=1600, lr=3e-3),
    "cifar100_sub": replace(COMMON, image_size=32, augment="photo", steps=5000),
}
# of Refract, in place of the recipe's: as the quick comparison chose them on classes of the training split
RATES = {
    "omniglot": {"lr": 1e-3, "proxy_lr": 1e-1},
    "grocery": {"lr": 3e-3, "proxy_lr": 3e-2},
    "cifar100_sub": {"lr": 3e-3, "proxy_lr": 3e-2},
}
# row: settings of the method; the noise rate that it is told is the true one, if it is not here
PRISM = {
    "MCL": {"method": "mcl"},
    "MCL + PRISM (centre), R known": {"method": "prism-mcl"},
    "MCL + PRISM (vmf), R known": {"method": "prism-mcl", "similarity": "vmf", "selection_warmup": 50},
    "MCL + PRISM (centre, temperature 0.05), R known": {
        "method": "prism-mcl",
        "temperature": 0.05,
        "selection_warmup": 50,
    },
    "MCL + PRISM (centre), auto": {"method": "prism-mcl", "noise_rate": "auto"},
    "oracle": {"method": "oracle"},
}
REFRACT = {
    "Refract": {"method": "refract", "noise_rate": "auto"},
    "oracle of Refract": {"method": "refract-oracle", "noise_rate": "auto"},
}
ROWS = PRISM | REFRACT
SEEDS = (0, 1, 2)
# With all labels right, MCL is its own oracle, and a known R of 0 is MCL.
OURS = ((0.5, "Refract"), (0.5, "oracle of Refract"), (0.0, "Refract"))
GRID = [
    *((0.5, row) for row in PRISM),
    (0.2, "MCL + PRISM (centre), auto"),
    (0.0, "MCL + PRISM (centre), auto"),
    (0.0, "MCL"),
    *OURS,
    (0.2, "Refract"),
    (0.8, "Refract"),
    (0.8, "MCL + PRISM (centre), R known"),
]
# what is run of each data set
GRIDS = {
    "omniglot": GRID,
    "grocery": GRID,
    "grocery, affine augmentation": [(0.5, row) for row in PRISM],
    "omniglot, 136 characters": [(0.5, "MCL"), (0.5, "MCL + PRISM (centre), R known"), (0.5, "oracle")],
    "cifar100_sub": list(OURS),
}

HEADER = ["noise", "row", "seeds", "P@1", "MAP@R", "gap closed, P@1", "gap closed, MAP@R", "noise estimated"]
HEADER += ["judged at the end: purity", "clean recall", "AUROC"]
HEADER += ["last decisions: purity", "clean recall", "s/run"]


def read(data: str) -> ImageTable:
    """A data set, or of it the first so many classes of the training and of the test split."""
    name, _, part = data.partition(", ")
    table = read_table(Path(os.environ["PRISM_DATA"], f"{name}.parquet"))
    if not part.endswith("characters"):
        return table
    chosen = np.zeros(len(table), bool)
    for split in ("train", "test"):
        inside = table.splits == split
        classes = np.unique(table.labels[inside])[: int(part.split()[0])]
        chosen |= inside & np.isin(table.labels, classes)
    return table.select(chosen)


def run(job: dict) -> dict:
    """Train and evaluate one row on one seed."""
    torch.set_num_threads(job["threads"])
    data, rate, seed = job["data"], job["rate"], job["seed"]
    table = read(data)
    noisy = corrupt_table(table, "symmetric", rate, seed)
    row = {"noise_rate": rate, "seed": seed} | ROWS[job["row"]]
    config = replace(RECIPES[data], **row | (RATES[data] if job["row"] in REFRACT else {}))
    folder = Path(tempfile.mkdtemp(prefix="noise_recovery_"))
    start = time.monotonic()
    try:
        result = train(noisy, config, folder / "run")
        seconds = time.monotonic() - start
        model = load(folder / "run")
    finally:
        shutil.rmtree(folder)
    test = open_images(table.split("test"), config.image_size, Augment("none"))
    metrics = retrieval_metrics(embed_all(model, test), torch.from_numpy(test.table.labels))
    names = ("precision_at_1", "map_at_r", "r_precision")
    machine = f"{device_name('cpu', COMMON.precision)}; Python {platform.python_version()}, torch {torch.__version__}"
    return (
        job
        | {name: metrics[name] for name in names}
        | {"seconds": round(seconds), "machine": machine, "result": result}
    )


@functools.cache
def raw_pixels(data: str) -> float:
    """Precision@1 of unit-length pixels: no training."""
    table = read(data).split("test")
    batches = open_images(table, RECIPES[data].image_size, Augment("none")).evaluate()
    pixels = torch.cat([(batch.images * 0.25 + 0.5).flatten(1) for batch in batches])
    return retrieval_metrics(torch.nn.functional.normalize(pixels), torch.from_numpy(table.labels))[
        "precision_at_1"
    ]


def write_table(out: Path, results: list[dict], command: str) -> None:
    lines = ["# What PRISM wins back", "", f"    {command}", ""]
    lines += [
        "Mean ± standard deviation over the seeds; the recipe is in the script. Retrieval among the images of the test "
        "split, whose classes are not in training. A gap closed is that of the means; of Refract, another loss, none. "
        "Oracles see right labels only, and judge none.",
        "",
    ]
    for machine, runs in Counter(r["machine"] for r in results).items():
        lines.append(f"- {runs} runs: prism-dml {prism_dml.__version__}, {machine}")
    lines.append("")
    for data in RECIPES:
        mine = [r for r in results if r["data"] == data]
        if not mine:
            continue
        lines += [f"## {data}", "", f"Raw pixels: Precision@1 {raw_pixels(data):.3f}", ""]
        lines += ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
        for rate, row in GRIDS[data]:
            runs = [r for r in mine if r["rate"] == rate and r["row"] == row]
            if runs:
                lines.append(
                    "| " + " | ".join([f"{rate:.0%}", row, str(len(runs)), *columns(runs, mine)]) + " |"
                )
        lines.append("")
    (out / "table.md").write_text("\n".join(lines))


def columns(runs: list[dict], mine: list[dict]) -> list[str]:
    # What an oracle says of the right labels that it learned from is not said of all.
    results = [] if "oracle" in runs[0]["row"] else [r["result"] for r in runs]
    judged = [result.get("judgement") or {} for result in results]
    decided = [result["last_decisions"] for result in results]

    def of(facts: list[dict], name: str) -> str:
        return spread([f[name] for f in facts if f.get(name) is not None])

    return [
        of(runs, "precision_at_1"),
        of(runs, "map_at_r"),
        gap("precision_at_1", runs, mine),
        gap("map_at_r", runs, mine),
        of(results, "noise_rate_estimate"),
        of(judged, "purity"),
        of(judged, "clean_recall"),
        of(judged, "auroc"),
        of(decided, "purity"),
        of(decided, "clean_recall"),
        f"{np.mean([r['seconds'] for r in runs]):.0f}",
    ]


def gap(metric: str, runs: list[dict], mine: list[dict]) -> str:
    """(row - MCL) / (oracle - MCL), by the means over the seeds that all three have; nothing for another loss.

    Not the mean of each seed's share: where the oracle is hardly above MCL, a seed's can be anything.
    """
    rate, row = runs[0]["rate"], runs[0]["row"]
    of_row = {
        name: {r["seed"]: r[metric] for r in mine if (r["rate"], r["row"]) == (rate, name)}
        for name in ("MCL", row, "oracle")
    }
    seeds = set.intersection(*(set(found) for found in of_row.values()))
    if row in REFRACT or rate == 0 or not seeds:
        return ""
    low, reached, high = (mean(of_row[name][seed] for seed in seeds) for name in ("MCL", row, "oracle"))
    return f"{(reached - low) / (high - low):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--only", choices=RECIPES, help="one data set")
    parser.add_argument("--rate", type=float, help="one noise rate")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "results.jsonl"
    keys = ("data", "rate", "row", "seed")
    done = {tuple(r[k] for k in keys) for r in read_results(file)}
    threads = max(1, (os.cpu_count() or 1) // arguments.workers)
    jobs = [
        dict(zip(keys, (data, rate, row, seed), strict=True)) | {"threads": threads}
        for rates in ((0.5,), (0.0, 0.2, 0.8))  # what matters most first
        for seed in SEEDS
        for data, grid in GRIDS.items()
        for rate, row in grid
        if rate in rates
        and (data, rate, row, seed) not in done
        and arguments.only in (None, data)
        and arguments.rate in (None, rate)
    ]
    command = "python benchmarks/noise_recovery.py --out benchmarks/noise_recovery"
    run_all(
        run, jobs, file, arguments.workers, keys, lambda results: write_table(arguments.out, results, command)
    )


if __name__ == "__main__":
    main()
