"""The demonstration: with half the labels wrong, MCL, PRISM, Refract and the oracle side by side."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from prism_dml.benchmark.demo_page import MODELS, OURS, SAMPLES, draw_pictures, write_page
from prism_dml.data import (
    Augment,
    BytesImages,
    ImageBatches,
    ImageTable,
    corrupt_table,
    letters_table,
    omniglot_table,
    open_images,
    write_table,
)
from prism_dml.files import replacing
from prism_dml.models import load
from prism_dml.models.files import CHECKPOINT
from prism_dml.retrieval import bootstrap_interval, retrieval_metrics, retrieval_scores
from prism_dml.training import TrainConfig, train
from prism_dml.training.measure import embed_all
from prism_dml.training.result import RUN, read_run

DemoData = Literal["letters", "omniglot"]

# The same for all methods. Chosen on the letters of seeds 1 and 2; the demo's own seed is 0.
RECIPES = {
    "letters": TrainConfig(augment="drawing", image_size=28, steps=1000, lr=3e-3, validation=0),
    "omniglot": TrainConfig(augment="drawing", image_size=28, steps=2000, lr=3e-3, validation=0),
}
LEARNS_FROM = {
    "mcl": "believes every label",
    "prism-mcl": "judges each label as it learns, and leaves out those that look wrong",
    "refract": "also puts right what is probably wrong, and learns by another loss",
    "oracle": "is told which labels are right, and learns from those alone",
}
LOOK = Augment("none")
"""What the small network sees of an image when it is not trained on it."""
LETTER_PIXELS = 56
"""Letters are drawn larger than they are learned from, for the pictures."""
SUSPECTS = 10

Announce = Callable[[str], None]


class DemoStopped(KeyboardInterrupt):
    """The demo was asked to stop; the same call goes on. `signal` is what asked."""

    def __init__(self, number: int, out: Path) -> None:
        self.signal = number
        super().__init__(f"stopped; the same command goes on with what is in {out}")


def run_demo(data: DemoData, out: Path, seed: int, noise_rate: float, announce: Announce) -> dict[str, Any]:
    """Train on wrong labels with each method, compare them on unseen characters, leave everything in a folder.

    The folder gets a run for each method (mcl, prism-mcl, refract, oracle), the noisy data (data.parquet), samples.csv
    (a judgement on each training sample, most suspicious first), pictures/, report.html and result.json. A demo
    that was interrupted goes on where it stopped; a finished one is only read.

    Args:
        data: "letters" (drawn, no download) or "omniglot".
        out: the folder.
        seed: of the split of the letters, of the noise and of the training.
        noise_rate: share in [0, 1) of the training labels that is made wrong.
        announce: called with a line at each stage.

    Returns:
        What result.json holds.

    Raises:
        ValueError: an argument out of range, a folder that holds something else, or data that cannot be had.
        DemoStopped: SIGINT or SIGTERM came; calling again goes on.
    """
    if not 0 <= noise_rate < 1:
        raise ValueError(f"noise_rate must be in [0, 1), not {noise_rate}")
    recipe = replace(RECIPES[data], seed=seed)
    settings = {"data": data, "noise_rate": noise_rate, "methods": list(MODELS), "recipe": asdict(recipe)}
    try:
        began = _enter(out, settings)
        if (out / "result.json").is_file():
            announce(f"{out} holds this demo, finished: here it is again. Remove the folder to train anew.")
            return dict(_read(out / "result.json"))
        with _one_thread():
            return _make(out, settings, recipe, announce, began)
    except KeyboardInterrupt as stop:
        raise DemoStopped(getattr(stop, "signal", signal.SIGINT), out) from None


def summarise(result: dict[str, Any]) -> str:
    """A result in a few sentences."""
    score = {name: model["precision_at_1"] for name, model in result["models"].items()}
    gap = {name: closed["precision_at_1"] for name, closed in result["gap_closed"].items()}
    text = (
        f"{result['noise_rate_true']:.0%} of the training labels are wrong. For images of "
        f"{result['test_classes']} characters never seen in training, the nearest other image shows the same "
        f"character {_percent(score['mcl'])} of the time when all labels are believed (MCL), "
        f"{_percent(score['prism-mcl'])} with PRISM, {_percent(score['refract'])} with Refract, and "
        f"{_percent(score['oracle'])} for MCL's oracle, which is told which labels are right and learns from those "
        "alone. "
    )
    if gap["refract"] is not None:
        text += (
            f"Of the gap between MCL and the oracle PRISM closes {gap['prism-mcl']:.0%} and Refract "
            f"{gap['refract']:.0%}. "
        )
    text += (
        "Neither was told how many labels are wrong: Refract estimates "
        f"{_percent(result['noise_rate_estimate'])}. "
        f"Of the labels that it trusts {_percent(result['purity'])} are right, "
        f"and it trusts {_percent(result['clean_recall'])} of the right ones."
    )
    for name, label in MODELS.items():
        if score[name] < score["raw-pixels"]:
            text += f" {label} is below raw pixels, which need no training: {_percent(score['raw-pixels'])}."
    return text


def _make(
    out: Path, settings: dict[str, Any], recipe: TrainConfig, announce: Announce, began: bool
) -> dict[str, Any]:
    start = time.monotonic()
    table = _noisy_table(settings["data"], recipe.seed, settings["noise_rate"])
    learn, test = table.split("train"), table.split("test")
    noisy = learn.is_noisy
    assert noisy is not None
    announce(
        f"{settings['data']}: {len(learn):,} images of {learn.num_classes} characters to learn from, "
        f"{noisy.sum():,} of them with a wrong label; "
        f"{len(test):,} images of {test.num_classes} other characters to test on"
    )
    if not (out / "data.parquet").exists():
        write_table(table, out / "data.parquet")
    runs = {}
    for number, (method, name) in enumerate(MODELS.items(), start=1):
        announce(f"[{number}/{len(MODELS)}] {name}: {LEARNS_FROM[method]}{_state(out / method)}")
        runs[method] = _run(table, replace(recipe, method=method), out / method)

    announce("comparing on the unseen characters")
    assert recipe.image_size is not None
    images = open_images(test, recipe.image_size, LOOK)
    embeddings = {"raw-pixels": _pixels(images)}
    embeddings |= {method: embed_all(load(out / method), images) for method in MODELS}
    samples = _judged_samples(out)
    judgement = runs[OURS]["judgement"]
    models = {name: _measure(vectors, test.labels, recipe.seed) for name, vectors in embeddings.items()}
    result = {
        **settings,
        "seed": recipe.seed,
        "train_images": len(learn),
        "train_classes": learn.num_classes,
        "test_images": len(test),
        "test_classes": test.num_classes,
        "models": models,
        "gap_closed": {
            name: {metric: _gap_closed(models, name, metric) for metric in ("precision_at_1", "map_at_r")}
            for name in ("prism-mcl", "refract")
        },
        "noise_rate_true": float(noisy.mean()),
        "noise_rate_estimate": runs[OURS]["noise_rate_estimate"],
        "purity": judgement["purity"],
        "clean_recall": judgement["clean_recall"],
        "suspects": samples.head(SUSPECTS).to_dict("records"),
        # Of a demo that went on after an interruption, the time is not known.
        "seconds": None if began else round(time.monotonic() - start, 1),
    }
    announce("drawing pictures and the report")
    draw_pictures(out, result, samples, test, embeddings)
    write_page(out, result, learn, summarise(result))
    _write(out / "result.json", result)
    return result


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch on one thread: batches this small gain nothing from more, and lose much where a core is busy.

    Besides, the numbers are then the same however many cores there are.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _enter(out: Path, settings: dict[str, Any]) -> bool:
    """Whether the folder holds this demo, begun; else a new one is begun. ValueError if it holds another thing."""
    file = out / "demo.json"
    if not file.is_file():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ValueError(f"{out} exists and holds no demo: give another folder with --out")
        out.mkdir(parents=True, exist_ok=True)
        _write(file, settings)
        return False
    held = _read(file)
    if held != settings:
        wanted, there = _flat(settings), _flat(held)
        changed = ", ".join(
            f"{key.replace('_', '-')} {there.get(key)} instead of {value}"
            for key, value in wanted.items()
            if there.get(key) != value
        )
        raise ValueError(
            f"{out} holds another demo ({changed}): give another folder with --out, or remove it"
        )
    return True


def _noisy_table(data: str, seed: int, noise_rate: float) -> ImageTable:
    """Training and test characters, split "train" with wrong labels."""
    if data == "omniglot":
        return corrupt_table(omniglot_table(), "symmetric", noise_rate, seed)
    parts = dict(zip(("train", "test"), letters_table(LETTER_PIXELS, seed), strict=True))
    whole = ImageTable.from_names(
        BytesImages([part.images.read(i) for part in parts.values() for i in range(len(part))]),
        [path for part in parts.values() for path in part.paths],
        [part.classes[label] for part in parts.values() for label in part.labels],
        splits=[name for name, part in parts.items() for _ in range(len(part))],
    )
    return corrupt_table(whole, "symmetric", noise_rate, seed)


def _state(run: Path) -> str:
    begun = " (goes on)" if (run / CHECKPOINT).is_file() else ""
    return " (already trained)" if (run / RUN).is_file() else begun


def _run(table: ImageTable, config: TrainConfig, out: Path) -> dict[str, Any]:
    """The result of a run: of the folder's, if it is finished, which is gone on with, if it is begun."""
    if (out / RUN).is_file():
        return dict(read_run(out)["result"])
    return train(table, config, out, resume=(out / CHECKPOINT).is_file())


def _pixels(images: ImageBatches) -> Tensor:
    """(N, S x S) pixels in [0, 1] as the models see them, which retrieval brings to unit length."""
    batches = (batch.images[:, 0] * LOOK.std[0] + LOOK.mean[0] for batch in images.evaluate())
    return torch.cat([pixels.flatten(1) for pixels in batches])


def _measure(vectors: Tensor, labels: np.ndarray, seed: int) -> dict[str, Any]:
    metrics = retrieval_metrics(vectors, labels)
    scores = retrieval_scores(vectors, labels)
    names = ("precision_at_1", "map_at_r")
    return metrics | {"intervals": {name: bootstrap_interval(scores[name], seed) for name in names}}


def _gap_closed(models: dict[str, dict[str, Any]], name: str, metric: str) -> float | None:
    """(model - MCL) / (oracle - MCL); None if the oracle is not better than MCL."""
    mcl, model, oracle = (models[key][metric] for key in ("mcl", name, "oracle"))
    return (model - mcl) / (oracle - mcl) if oracle > mcl else None


def _judged_samples(out: Path) -> pd.DataFrame:
    """What `OURS` says of each training sample, most suspicious first; also written as samples.csv."""
    samples = pd.read_parquet(out / OURS / "samples.parquet")
    samples["is_wrong"] = samples["label"] != samples["clean_label"]
    samples = samples.sort_values("clean_probability", kind="stable")
    with replacing(out / SAMPLES) as temporary:
        samples.to_csv(temporary, index=False)
    return samples


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    own = {key: value for key, value in settings.items() if key != "recipe"}
    return {**settings["recipe"], **own}  # the noise rate is the data's: nobody is told


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{share:.1%}"


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from None


def _write(file: Path, content: dict[str, Any]) -> None:
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
