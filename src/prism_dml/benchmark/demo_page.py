"""The demonstration's pictures and page, drawn from its result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from prism_dml.audit import (
    Picture,
    Suspect,
    plot_clean_probability,
    plot_precision,
    plot_retrieval,
    plot_training,
    write_demo_report,
)
from prism_dml.data import ImageTable, read_image
from prism_dml.methods.refract import BELIEVED
from prism_dml.retrieval import nearest_neighbours

MODELS = {"mcl": "MCL", "prism-mcl": "MCL + PRISM", "refract": "Refract", "oracle": "Oracle"}
"""Name of each trained method, in the order of training."""
OURS = "refract"
"""The one whose judgement on the labels is shown."""
NAMES = {"raw-pixels": "Raw pixels", **MODELS}
"""Name of each row of the comparison, in order."""
SAMPLES = "samples.csv"
QUERIES, NEIGHBOURS = 8, 5


def draw_pictures(
    out: Path,
    result: dict[str, Any],
    samples: pd.DataFrame,
    test: ImageTable,
    embeddings: Mapping[str, Tensor],
) -> None:
    """Draw all pictures into the folder's pictures/.

    Args:
        out: the demo's folder.
        result: see `run_demo`.
        samples: the judgement of `OURS` on the training samples, with is_wrong.
        test: N images of unseen characters.
        embeddings: for each row of the comparison (N, D).
    """
    folder = out / "pictures"
    models = result["models"]
    plot_precision(
        {NAMES[name]: model["precision_at_1"] for name, model in models.items()},
        folder / "precision.png",
        {NAMES[name]: model["intervals"]["precision_at_1"] for name, model in models.items()},
        highlight=NAMES[OURS],
    )
    plot_clean_probability(
        samples["clean_probability"], samples["is_wrong"], folder / "clean_probability.png", BELIEVED
    )
    with (out / OURS / "metrics.jsonl").open(encoding="utf-8") as file:
        log = pd.DataFrame([json.loads(line) for line in file])
    plot_training(
        log["step"],
        folder / "training.png",
        log.get("purity"),
        log.get("clean_recall"),
        log.get("noise_rate_estimate"),
        result["noise_rate_true"],
    )
    queries = _queries(test, result["seed"])
    for name in MODELS:
        _, found = nearest_neighbours(embeddings[name], k=NEIGHBOURS)
        nearest = found.numpy()[queries]  # (Q, K)
        plot_retrieval(
            [read_image(test, i) for i in queries],
            [[read_image(test, i) for i in row] for row in nearest],
            test.labels[nearest] == test.labels[queries, None],
            NAMES[name],
            folder / f"retrieval-{name}.png",
        )


def write_page(out: Path, result: dict[str, Any], learn: ImageTable, summary: str) -> None:
    """Write report.html.

    Args:
        out: the demo's folder, with its pictures.
        result: see `run_demo`.
        learn: the training images, by given label.
        summary: the result in words.
    """
    folder = out / "pictures"
    place = {path: i for i, path in enumerate(learn.paths)}
    suspects = [
        Suspect(
            read_image(learn, place[suspect["path"]]),
            suspect["label"],
            suspect["suggested_label"],
            suspect["clean_probability"],
            suspect["is_wrong"],
        )
        for suspect in result["suspects"]
    ]
    pictures = {
        "precision": "Share of the test images whose nearest other image shows the same character. "
        "Whiskers: 95% intervals over the images.",
        "retrieval-mcl": "All labels believed (MCL): queries, drawn at random among unseen characters, "
        "and their nearest images.",
        "retrieval-prism-mcl": "With PRISM, which leaves out what looks wrong: the same queries.",
        "retrieval-refract": "With Refract, which also puts right what is probably wrong.",
        "retrieval-oracle": "The oracle, which is told the truth.",
        "clean_probability": "What Refract, once trained, thinks of each training label: those that are more "
        f"likely right than wrong, of a probability of {BELIEVED} or more, it trusts. Which of them are wrong it never "
        "knew.",
        "training": "The labels that Refract trusted in each stretch of training, measured against the truth that it "
        "never knew, and its estimate of the share of wrong labels.",
    }
    write_demo_report(
        out,
        summary=summary,
        metrics={
            NAMES[name]: {"Precision@1": model["precision_at_1"], "MAP@R": model["map_at_r"]}
            for name, model in result["models"].items()
        },
        pictures=[
            Picture(folder / f"{name}.png", caption, half=name.startswith("retrieval"))
            for name, caption in pictures.items()
        ],
        suspects=suspects,
        notes=_notes(result),
        highlight=NAMES[OURS],
    )


def _queries(test: ImageTable, seed: int) -> np.ndarray:
    """(Q,) one random image of each of some random classes, in the order of the classes."""
    generator = np.random.default_rng((seed, 3))
    shuffled = generator.permutation(len(test))
    _, first = np.unique(test.labels[shuffled], return_index=True)  # one image of each class
    chosen = generator.permutation(first)[:QUERIES]
    return np.sort(shuffled[chosen])


def _notes(result: dict[str, Any]) -> dict[str, str]:
    recipe = result["recipe"]
    notes = {
        "Data": f"{result['data']}: {result['train_images']:,} training images of "
        f"{result['train_classes']} characters, {result['test_images']:,} test images of "
        f"{result['test_classes']} others",
        "Wrong labels": f"{result['noise_rate_true']:.1%} of the training labels, each replaced by another "
        f"character at random; Refract estimates {result['noise_rate_estimate']:.1%}",
        "Recipe": f"the same for all: {recipe['steps']:,} steps, images of {recipe['image_size']} pixels, "
        f"learning rate {recipe['lr']:g}, from scratch",
        "Seed": str(result["seed"]),
    }
    if result["seconds"] is not None:
        notes["Time"] = f"{result['seconds']:.0f} s"
    return notes
