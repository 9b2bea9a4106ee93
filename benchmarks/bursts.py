"""Photographs taken in bursts: are wrong labels found that a whole burst shares? Beside it cleanlab.

    PRISM_DATA=folder python benchmarks/bursts.py --out benchmarks/bursts

Needs the extra `benchmark` (cleanlab), cifar10n_worse.parquet in $PRISM_DATA, and beside it the weights that
benchmarks/imagenet_weights.py fetches. Of each of CIFAR-10's classes some images of the training split are drawn, and
each is made a burst: cut a little smaller at a random place, turned by up to 8 degrees, lighter or darker by up to 15
per cent. A network with ImageNet weights embeds them at 128 pixels. Labels are given to bursts, 30 % of them wrong,
any other alike; or to each image by itself; or all are right. Each method is asked which labels are wrong, and told
nothing of bursts: cleanlab's five folds are cut over images, so that its classifiers have seen a burst's other images.
"Prism, no bursts" judges each image by itself, and leaves out what an audit settles between near-identical images.
Rows are in random order. A finished run is one line of results.jsonl and is not run again.
"""

import argparse
import io
import json
import os
import platform
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageEnhance
from resumed import read_results
from sklearn.metrics import f1_score, roc_auc_score
from torch.nn.functional import normalize
from wrong_labels import IMAGENET, METHODS, WEIGHTS, by_method

import prism_dml
from prism_dml.benchmark.frozen import embedded_once
from prism_dml.data import read_table
from prism_dml.data.vectors import open_vectors
from prism_dml.retrieval import neighbour_graph
from prism_dml.selection.cross_fit import judge_labels
from prism_dml.training import TrainConfig

PIXELS, WRONG, SEEDS = 128, 0.3, 3
THINGS = {5: 80, 20: 20}  # images in a burst: bursts of each class
GIVEN = ("to bursts", "one by one", "right")
OURS, THEIRS = "Prism, audit", ("cleanlab, neighbours", "cleanlab, logistic regression")
BY_ITSELF = "Prism, no bursts"
KEYS = ("times", "given", "seed", "method")
COLUMNS = {"auroc": "AUROC", "f1": "F1 at its own cut", "doubted": "right labels doubted", "rate": "rate"}


def by_itself(embeddings: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """What `find_label_issues` goes by, were there no such thing as bursts."""
    rows = normalize(torch.from_numpy(embeddings), dim=1)
    found = judge_labels(rows, torch.from_numpy(labels), *neighbour_graph(rows, 64))
    score = found.clean_probability.numpy()
    return score, score <= 0.5, found.noise_rate


ASKED = {OURS: METHODS[OURS], BY_ITSELF: by_itself} | {name: METHODS[name] for name in THEIRS}


def burst_of(image: bytes, times: int, rng: np.random.Generator) -> list[bytes]:
    """The image as it would be photographed so many times."""
    whole = Image.open(io.BytesIO(image)).convert("RGB")
    taken = []
    for _ in range(times):
        side = round(whole.width * rng.uniform(0.88, 1))
        left, upper = rng.integers(0, whole.width + 1 - side, size=2).tolist()
        turned = whole.rotate(rng.uniform(-8, 8), resample=Image.Resampling.BICUBIC)
        cut = turned.crop((left, upper, left + side, upper + side)).resize(whole.size)
        file = io.BytesIO()
        ImageEnhance.Brightness(cut).enhance(rng.uniform(0.85, 1.15)).save(file, "PNG")
        taken.append(file.getvalue())
    return taken


def photographs(data: pd.DataFrame, times: int, seed: int) -> pd.DataFrame:
    """Bursts in random order: image, label (the true one), thing."""
    rng, rows = np.random.default_rng(seed), []
    for name, members in data.groupby("clean_label"):
        for place in rng.permutation(len(members))[: THINGS[times]].tolist():
            image, thing = members.image.iloc[place]["bytes"], f"{name}-{place}"
            rows += [({"bytes": b, "path": None}, name, thing) for b in burst_of(image, times, rng)]
    order = rng.permutation(len(rows))
    return pd.DataFrame([rows[i] for i in order], columns=["image", "label", "thing"])


def embedded(photos: pd.DataFrame, weights: Path) -> np.ndarray:
    """What the network makes of them, (N, D)."""
    config = TrainConfig(**IMAGENET | {"image_size": PIXELS, "weights": str(weights)})
    with tempfile.TemporaryDirectory(prefix="bursts_") as folder:
        file = Path(folder, "photos.parquet")
        photos.drop(columns="thing").to_parquet(file)
        table = embedded_once(read_table(file), file, config, "cpu", Path(folder))
        return open_vectors(table, max_unreadable=0).vectors.numpy().copy()


def mislabelled(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Any other label is given by mistake with the probability `WRONG`."""
    other = (truth + rng.integers(1, truth.max() + 1, size=len(truth))) % (truth.max() + 1)
    return np.where(rng.random(len(truth)) < WRONG, other, truth)


def measured(score: np.ndarray, flagged: np.ndarray, rate: float, wrong: np.ndarray) -> dict:
    some = wrong.any()
    return {
        "auroc": float(roc_auc_score(~wrong, score)) if some else None,
        "f1": float(f1_score(wrong, flagged)) if some else None,
        "doubted": float(flagged[~wrong].mean()),
        "rate": float(rate),
        "wrong": float(wrong.mean()),
    }


def write_table(out: Path, results: list[dict]) -> None:
    lines = [
        "# Wrong labels of photographs taken in bursts",
        "",
        "    python benchmarks/bursts.py --out benchmarks/bursts",
        "",
    ]
    lines += [
        f"Python {platform.python_version()}, torch {torch.__version__}, prism-dml {prism_dml.__version__}, "
        f"{os.cpu_count()} CPU cores. Mean ± standard deviation over the seeds, which differ in images and in labels.",
        "",
    ]
    for times in THINGS:
        for given in GIVEN:
            mine = [r for r in results if (r["times"], r["given"]) == (times, given)]
            if not mine:
                continue
            share = np.mean([r["wrong"] for r in mine])
            title = (
                f"{times} of each, labels given {given}"
                if given != "right"
                else f"{times} of each, all labels right"
            )
            lines += [f"## {title}" + (f", {share:.1%} wrong" if share else ""), ""]
            lines += by_method(mine, ASKED, COLUMNS)
    (out / "table.md").write_text("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    place, file = Path(os.environ["PRISM_DATA"]), out / "results.jsonl"
    results = read_results(file)
    done = {tuple(r[key] for key in KEYS) for r in results}
    data = pd.read_parquet(place / "cifar10n_worse.parquet", columns=["image", "clean_label", "split"])
    data = data[data.split == "train"]
    for seed in range(SEEDS):
        for times in THINGS:
            left = [(g, m) for g in GIVEN for m in ASKED if (times, g, seed, m) not in done]
            if not left:
                continue
            photos = photographs(data, times, seed)
            embeddings = embedded(photos, place / WEIGHTS)
            truth, thing = (pd.factorize(photos[name], sort=True)[0] for name in ("label", "thing"))
            of_thing = np.zeros(thing.max() + 1, np.int64)
            of_thing[thing] = truth
            rng = np.random.default_rng(seed)
            labels = {
                "to bursts": mislabelled(of_thing, rng)[thing],
                "one by one": mislabelled(truth, rng),
                "right": truth,
            }
            for given, method in left:
                found = measured(*ASKED[method](embeddings, labels[given]), labels[given] != truth)
                line = dict(zip(KEYS, (times, given, seed, method), strict=True)) | found
                results.append(line)
                with file.open("a") as log:
                    log.write(json.dumps(line) + "\n")
                print(line, flush=True)
                write_table(out, results)


if __name__ == "__main__":
    main()
