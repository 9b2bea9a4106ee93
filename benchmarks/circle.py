"""Does it pay to correct the labels? Train, audit, apply what the audit suggests with no person, train again.

    PRISM_DATA=folder python benchmarks/circle.py --out benchmarks/circle [--workers 2] [--seeds 0 1 2]

Needs grocery.parquet in $PRISM_DATA; 30 % of its training labels are made wrong at random. A finished run is one line
of results.jsonl and is not run again; what the audit of a run suggests is corrections-METHOD-SEED.json, from which the
runs on labels corrected by it start. Recipe and learning rates are those of noise_recovery.py; nothing is chosen on the
test split: the last checkpoint is evaluated.
"""

import argparse
import os
import platform
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from noise_recovery import RATES, RECIPES, spread
from resumed import read_results, run_all

import prism_dml
from prism_dml.audit import find_label_issues, make_audit, suggest_corrections
from prism_dml.data import (
    Augment,
    ImageTable,
    LabelledEmbeddings,
    apply_corrections,
    corrupt_table,
    open_images,
    read_corrections,
    read_embeddings,
    read_table,
    table_fingerprint,
    write_corrections,
)
from prism_dml.models import load
from prism_dml.retrieval import retrieval_metrics
from prism_dml.training import train
from prism_dml.training.measure import embed_all
from prism_dml.training.result import EMBEDDINGS

RECIPE = RECIPES["grocery"]
RATE = 0.3
SEEDS = (0, 1, 2)
PRISM = {"method": "prism-mcl", "noise_rate": "auto"}
REFRACT = {"method": "refract", **RATES["grocery"]}
# row: the labels that it learns from, settings of the method
FIRST = {"MCL + PRISM (auto)": ("wrong", PRISM), "Refract": ("wrong", REFRACT)}  # their audit corrects labels
ROWS = {
    "MCL": ("wrong", {"method": "mcl"}),
    **FIRST,
    "MCL, corrected by MCL + PRISM": ("MCL + PRISM (auto)", {"method": "mcl"}),
    "MCL + PRISM (auto), corrected by itself": ("MCL + PRISM (auto)", PRISM),
    "MCL, corrected by Refract": ("Refract", {"method": "mcl"}),
    "Refract, corrected by itself": ("Refract", REFRACT),
    "oracle": ("wrong", {"method": "oracle"}),
    "oracle of Refract": ("wrong", REFRACT | {"method": "refract-oracle"}),
    "MCL, all labels right": ("right", {"method": "mcl"}),
    "Refract, all labels right": ("right", REFRACT),
}
KEYS = ("row", "seed", "steps")


def run(job: dict) -> dict:
    """Train and evaluate one row on one seed; the first run of a seed also corrects its labels."""
    torch.set_num_threads(job["threads"])
    labels, settings = ROWS[job["row"]]
    config = replace(RECIPE, seed=job["seed"], steps=job["steps"], **settings)
    table = read_table(Path(os.environ["PRISM_DATA"], "grocery.parquet"))
    noisy = corrupt_table(table, "symmetric", RATE, job["seed"])
    if labels == "wrong":
        learn = noisy
    elif labels == "right":
        learn = table
    else:
        learn = apply_corrections(noisy, read_corrections(suggestions(job, labels))).table
    folder = Path(tempfile.mkdtemp(prefix="circle_"))
    start = time.monotonic()
    try:
        train(learn, config, folder / "run")
        seconds = time.monotonic() - start
        model = load(folder / "run")
        result = {name: job[name] for name in KEYS}
        if job["row"] in FIRST:
            found = read_embeddings(folder / "run" / EMBEDDINGS)
            result["corrected"] = correct(found, noisy, suggestions(job, job["row"]))
    finally:
        shutil.rmtree(folder)
    test = table.split("test")
    images = open_images(test, RECIPE.image_size, Augment("none"))
    metrics = retrieval_metrics(embed_all(model, images), torch.from_numpy(test.labels))
    names = ("precision_at_1", "map_at_r", "r_precision")
    return result | {name: metrics[name] for name in names} | {"seconds": round(seconds)}


def suggestions(job: dict, row: str) -> Path:
    """Where what the audit of a row suggests is."""
    return Path(job["out"], f"corrections-{FIRST[row][1]['method']}-{job['seed']}.json")


def correct(found: LabelledEmbeddings, noisy: ImageTable, place: Path) -> dict:
    """Write what `prism audit` suggests for the training split, and say what applying it does to the labels."""
    inside = np.flatnonzero(noisy.splits == "train")
    learn = noisy.select(inside)
    assert found.paths == learn.paths
    issues = find_label_issues(found.vectors, np.array(learn.classes)[learn.labels], found.scores)
    audit = make_audit(issues, found.vectors, learn.paths, table_fingerprint(noisy), inside)
    write_corrections(suggest_corrections(audit), place)
    corrections = read_corrections(place)
    after = apply_corrections(noisy, corrections)
    truth = [noisy.classes[k] for k in noisy.clean_labels]
    relabelled = [item for item in corrections.items if item.label is not None]
    return {
        "labels": len(learn),
        "wrong_before": float(learn.is_noisy.mean()),
        "wrong_after": float(after.table.split("train").is_noisy.mean()),
        "suspected": int(issues["is_label_issue"].sum()),
        "relabelled": after.relabelled,
        "relabelled_rightly": sum(item.label == truth[item.index] for item in relabelled),
        "spoilt": sum(item.given_label == truth[item.index] for item in relabelled),
        "dropped": after.dropped,
        "dropped_wrong": sum(
            item.given_label != truth[item.index] for item in corrections.items if item.label is None
        ),
    }


def write_table(out: Path, results: list[dict]) -> None:
    lines = ["# The circle: train, audit, correct, train again", ""]
    lines += ["    python benchmarks/circle.py --out benchmarks/circle", ""]
    lines += [
        f"Python {platform.python_version()}, torch {torch.__version__}, prism-dml {prism_dml.__version__}, "
        f"{os.cpu_count()} CPU cores, {platform.machine()}. Grocery, {RATE:.0%} of the training labels wrong at "
        f"random, {results[0]['steps']:,} steps. Mean ± standard deviation over the seeds; the recipe is in the "
        "script. Retrieval among the images of the test split, whose classes are not in training. Nobody looked at a "
        "suggestion before it was applied.",
        "",
    ]
    lines += table(["row", "seeds", "P@1", "P@1 over MCL", "MAP@R", "MAP@R over MCL", "s/run"])
    plain = {r["seed"]: r for r in results if r["row"] == "MCL"}
    for row in ROWS:
        runs = [r for r in results if r["row"] == row]
        if not runs:
            continue
        cells = [row, len(runs)]
        for metric in ("precision_at_1", "map_at_r"):
            over = [r[metric] - plain[r["seed"]][metric] for r in runs if row != "MCL" and r["seed"] in plain]
            cells += [spread([r[metric] for r in runs]), spread(over)]
        lines += table([*cells, f"{np.mean([r['seconds'] for r in runs]):.0f}"], head=False)
    lines += [
        "",
        "What an audit changed in the training labels. Rightly: relabelled to the true class; spoilt: relabelled "
        "though the given label was right.",
        "",
    ]
    header = [
        "audit of",
        "seed",
        "labels",
        "wrong before",
        "wrong after",
        "suspected",
        "relabelled",
        "rightly",
        "spoilt",
    ]
    lines += table([*header, "dropped", "of these wrong"])
    audited = [r for r in results if r["row"] in FIRST]
    for r in sorted(audited, key=lambda r: (list(FIRST).index(r["row"]), r["seed"])):
        facts = r["corrected"]
        cells = [
            r["row"],
            r["seed"],
            facts["labels"],
            f"{facts['wrong_before']:.1%}",
            f"{facts['wrong_after']:.1%}",
        ]
        cells += [
            facts["suspected"],
            facts["relabelled"],
            share(facts["relabelled_rightly"], facts["relabelled"]),
        ]
        cells += [facts["spoilt"], facts["dropped"], share(facts["dropped_wrong"], facts["dropped"])]
        lines += table(cells, head=False)
    (out / "table.md").write_text("\n".join([*lines, ""]))


def table(cells: list, head: bool = True) -> list[str]:
    """A row of a table, and the line under it if it is the head."""
    return ["| " + " | ".join(map(str, cells)) + " |", *["|" + "---|" * len(cells)] * head]


def share(part: int, whole: int) -> str:
    return f"{part} ({part / whole:.1%})" if whole else "0"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument(
        "--steps", type=int, default=RECIPE.steps, help="fewer, to try the script in a folder of its own"
    )
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "results.jsonl"
    results = read_results(file)
    if any(r["steps"] != arguments.steps for r in results):
        parser.error(f"{file} holds runs of another length: give another folder")
    done = {(r["row"], r["seed"]) for r in results}
    rest = {"steps": arguments.steps, "out": str(arguments.out)}
    rest["threads"] = max(1, (os.cpu_count() or 1) // arguments.workers)
    jobs = [
        {"row": row, "seed": seed} | rest
        for row in sorted(
            ROWS, key=lambda row: row not in FIRST
        )  # stable: the rows that others wait for come first
        for seed in arguments.seeds
        if (row, seed) not in done
    ]
    waiting = [job for job in jobs if ROWS[job["row"]][0] in FIRST]
    for part in ([job for job in jobs if job not in waiting], waiting):
        run_all(run, part, file, arguments.workers, KEYS, lambda results: write_table(arguments.out, results))


if __name__ == "__main__":
    main()
