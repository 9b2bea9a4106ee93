"""What each ingredient of Refract is worth, on validation classes with true labels.

    PRISM_DATA=folder python benchmarks/refract_study.py --out benchmarks/refract_study [--workers 2] [--only grocery]

Needs grocery.parquet and omniglot.parquet in $PRISM_DATA. A fifth of the training classes is set aside with true
labels, half of the labels of the others are made wrong, and the variants of VARIANTS are trained on those; the test
split is not touched. A finished run is one line of results.jsonl and is not run again. `time` is processor time beside
MCL's in the same table; runs side by side slow each other down, so it is good to a tenth.
"""

import argparse
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import mean
from unittest import mock

import torch
from resumed import read_results, run_all
from sklearn.metrics import roc_auc_score

from prism_dml.benchmark.jobs import Job
from prism_dml.benchmark.worker import tuning_table
from prism_dml.data import Augment, open_images
from prism_dml.methods import refract
from prism_dml.methods.base import EmbedAll
from prism_dml.methods.refract import Refract
from prism_dml.methods.registry import METHODS
from prism_dml.models import load
from prism_dml.retrieval import retrieval_metrics
from prism_dml.training import TrainConfig, train
from prism_dml.training.measure import embed_all

COMMON = {
    "validation": 0.2,
    "validate_every": 10**6,
    "precision": "bf16-mixed",
    "embedding_dim": 128,
    "workers": 0,
}
RECIPES = {
    "grocery": {"image_size": 48, "augment": "photo", "steps": 1000, "lr": 1e-3},
    "omniglot": {"image_size": 32, "augment": "drawing", "steps": 1600, "lr": 3e-3},
}
RATE = 0.5
KEYS = ("data", "row", "seed")


class FromMemory(Refract):
    """Refract that judges what the memory holds, the features of training, instead of embedding all images anew."""

    def on_epoch_start(self, embed_all: EmbedAll) -> None:
        bank, held = self.bank, self.bank.labels >= 0
        features = torch.zeros(self.data.num_samples, bank.embedding_dim)
        features[bank.index[held]] = bank.embeddings[held]
        super().on_epoch_start(lambda network: features)


def every(parts: int) -> dict:
    """Looks after equal parts of the run."""
    return {"PARTS": parts, "LOOKS": tuple(range(1, parts))}


# row: method, constants of refract.py that differ, another class in the place of Refract
VARIANTS = {
    "MCL": ("mcl", {}, None),
    "Refract": ("refract", {}, None),
    "oracle of Refract": ("refract-oracle", {}, None),
    "4 looks at equal parts": ("refract", every(5), None),
    "7 looks at equal parts": ("refract", every(8), None),
    "15 looks at equal parts": ("refract", every(16), None),
    "the memory's features instead of looks": ("refract", {}, FromMemory),
    "nothing put right": ("refract", {"SURE": 1.1}, None),
    "put right from 0.95 on": ("refract", {"SURE": 0.95}, None),
    "believed from 0.8 on": ("refract", {"BELIEVED": 0.8}, None),
}
COLUMNS = [
    "row",
    "seeds",
    "P@1",
    "MAP@R",
    "noise estimated",
    "AUROC",
    "purity",
    "clean recall",
    "put right",
    "of them right",
]
COLUMNS += ["AUROC at the first look", "time"]


def run(job: dict, root: Path) -> dict:
    """Train one variant on one data set and seed, and measure it on the classes set aside."""
    torch.set_num_threads(1)
    method, constants, other = VARIANTS[job["row"]]
    asked = Job("tuning", job["data"], f"{job['data']}.parquet", None, "symmetric", RATE, "", method, "given",
                {"validation": COMMON["validation"]}, job["seed"])  # fmt: skip
    table = tuning_table(asked, root)
    config = TrainConfig(method=method, seed=job["seed"], **COMMON, **RECIPES[job["data"]])
    truth, looks = torch.from_numpy(table.split("train").clean_labels), []

    def judged(embeddings, labels, *options, judge=refract._judge):
        found = judge(embeddings, labels, *options)
        looks.append(facts(found, labels, truth) if len(labels) == len(truth) else {})
        return found

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.multiple(refract, _judge=judged, **constants),
        mock.patch.dict(METHODS, {"refract": other} if other else {}),
    ):
        start = time.process_time()
        result = train(table, config, Path(folder) / "run")
        seconds = time.process_time() - start
        model = load(Path(folder) / "run")
    validation = open_images(table.split("validation"), config.image_size, Augment("none"))
    metrics = retrieval_metrics(embed_all(model, validation), torch.from_numpy(validation.table.labels))
    names = ("precision_at_1", "map_at_r")
    return (
        job
        | {name: metrics[name] for name in names}
        | {"seconds": round(seconds, 1), "looks": looks}
        | {"estimate": result.get("noise_rate_estimate")}
    )


def facts(found, labels: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    """How right a judgement is."""
    right, trusted = labels == truth, found.clean >= refract.BELIEVED
    put_right = ~trusted & (found.probability >= refract.SURE)
    corrected = (found.suggested == truth)[put_right].float()
    return {
        "auroc": float(roc_auc_score(right, found.clean)),
        "purity": float(right[trusted].float().mean()),
        "clean_recall": float(trusted[right].float().mean()),
        "put_right": float(put_right.float().mean()),
        "of_them_right": float(corrected.mean()) if len(corrected) else None,
    }


def write_table(out: Path, results: list[dict]) -> None:
    lines = [
        "# What each ingredient of Refract is worth",
        "",
        "    python benchmarks/refract_study.py --out benchmarks/refract_study",
        "",
    ]
    lines += [
        "Validation classes with true labels, half of the labels of the other training classes wrong; mean over the "
        'seeds. AUROC to "of them right": the last judgement of the training labels; "put right": share of all; time: '
        "of MCL's.",
        "",
    ]
    for data in RECIPES:
        mine = [r for r in results if r["data"] == data]
        if not mine:
            continue
        base = mean([r["seconds"] for r in mine if r["row"] == "MCL"] or [float("nan")])
        lines += [f"## {data}", "", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
        for row in VARIANTS:
            runs = [r for r in mine if r["row"] == row]
            if runs:
                cells = [
                    row,
                    str(len(runs)),
                    *(average(runs, lambda r, k=k: r[k]) for k in ("precision_at_1", "map_at_r", "estimate")),
                ]
                names = ("auroc", "purity", "clean_recall", "put_right", "of_them_right")
                cells += [
                    average(runs, lambda r, k=k: r["looks"][-1].get(k) if r["looks"] else None) for k in names
                ]
                cells += [average(runs, lambda r: r["looks"][0].get("auroc") if r["looks"] else None)]
                cells += [f"{mean(r['seconds'] for r in runs) / base:.2f}"]
                lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    (out / "table.md").write_text("\n".join(lines))


def average(runs: list[dict], value) -> str:
    values = [v for v in map(value, runs) if v is not None]
    return f"{mean(values):.3f}" if values else ""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--only", choices=RECIPES, help="one data set")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "results.jsonl"
    done = {tuple(r[key] for key in KEYS) for r in read_results(file)}
    jobs = [
        {"data": data, "row": row, "seed": seed}
        for seed in arguments.seeds
        for data in RECIPES
        for row in VARIANTS
        if (data, row, seed) not in done and arguments.only in (None, data)
    ]
    train_one = partial(run, root=Path(os.environ["PRISM_DATA"]))
    run_all(
        train_one, jobs, file, arguments.workers, KEYS, lambda results: write_table(arguments.out, results)
    )


if __name__ == "__main__":
    main()
