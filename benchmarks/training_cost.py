"""How much longer does Refract train than MCL? Both on the recipes of the quick comparison, in turn, in one run.

    PRISM_DATA=folder python benchmarks/training_cost.py --out benchmarks/training_cost.json [--rounds 3] [--threads 1]

Needs the four files of the quick comparison in $PRISM_DATA. Half of the labels are wrong, on CIFAR-10N as people had
them wrong. Timed is `prism_dml.training.train`: decoding, steps, looks, and what it leaves in the end, for Refract the
judgement of every label; processor time of one process, so that what else runs counts little. Settings and learning
rates are those of the first run of the row in benchmarks/quick/NAME/results.jsonl.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from prism_dml.benchmark.jobs import Job
from prism_dml.benchmark.machine import device_name, versions
from prism_dml.benchmark.tables import training_table
from prism_dml.training import TrainConfig, train

QUICK = Path(__file__).parent / "quick"
DATA = ("omniglot", "grocery", "cifar100_sub", "cifar10n_worse")
ROWS = ("MCL", "Refract")
NOISE = (("symmetric", 0.5), ("given", None))


def find_job(data: str, row: str) -> Job:
    """The first run of a row in the quick comparison."""
    for line in (QUICK / data / "results.jsonl").read_text().splitlines():
        found = json.loads(line)
        noise = found["noise_kind"], found["rate"]
        if found["kind"] == "run" and found["row"] == row and noise in NOISE:
            names = ("row", "method", "labels", "settings", "seed", "rate")
            path = f"{data}.parquet"
            return Job("run", data, path, None, found["noise_kind"], **{name: found[name] for name in names})
    raise SystemExit(f"{QUICK / data} has no run of {row}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    results = {}
    for data in DATA:
        seconds: dict[str, list[float]] = {row: [] for row in ROWS}
        jobs = {row: find_job(data, row) for row in ROWS}
        for _ in range(asked.rounds):
            for row, job in jobs.items():
                table = training_table(job, Path(os.environ["PRISM_DATA"]))
                config = TrainConfig(**job.settings, method=job.method, seed=job.seed, accelerator="cpu")
                with tempfile.TemporaryDirectory() as folder:
                    start = time.process_time()
                    train(table, config, Path(folder) / "run")
                    seconds[row].append(round(time.process_time() - start, 1))
        images = config.classes_per_batch * config.samples_per_class
        results[data] = {
            "epochs": round(config.steps * images / len(table.split("train")), 1),
            "seconds": seconds,
            "ratio": round(median(seconds["Refract"]) / median(seconds["MCL"]), 2),
        }
        print(data, results[data], flush=True)
    about = {
        "machine": device_name("cpu", config.precision),
        "versions": versions(),
        "threads": asked.threads,
    }
    asked.out.write_text(json.dumps({**about, **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
