"""How many images a second does training take, and what of a step is not the network?

    PRISM_DATA=folder python benchmarks/throughput.py --out benchmarks/throughput [--threads 2] [--only small]

Needs grocery.parquet in $PRISM_DATA. Whole training is `prism_dml.training.train` itself (MCL + PRISM, its estimate of
the noise rate included, batches of 64): images a second from the first step after the warm-up to the last. In the same
run, the parts of every step are timed by processor time, each without the parts inside it. Loading alone is batches
made and thrown away: from the cache, and decoded anew by workers. What results.json holds is not measured again.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import torch
from lightning_fabric import Fabric

from prism_dml.data import Augment, PKSampler, open_images, read_table
from prism_dml.data.loader import CachedBatches
from prism_dml.losses.contrastive import MemoryContrastiveLoss
from prism_dml.models import Embedder
from prism_dml.selection import PRISM
from prism_dml.training import TrainConfig, train
from prism_dml.training.guard import Guard
from prism_dml.training.progress import RunProgress

COMMON = TrainConfig(
    method="prism-mcl", validation=0, noise_rate="auto", workers=0, checkpoint_every=10**6, accelerator="cpu"
)
TRAINED = {
    "small": {"backbone": "small", "image_size": 48, "steps": 120},
    "resnet18": {"backbone": "resnet18", "image_size": 96, "steps": 16},
}
LOADED = {
    "cached, 48 px": {"size": 48, "cache": "memory", "workers": 0, "batches": 150},
    "cached, 96 px": {"size": 96, "cache": "memory", "workers": 0, "batches": 50},
    "streamed, 96 px, no worker": {"size": 96, "cache": "stream", "workers": 0, "batches": 10},
    "streamed, 96 px, 1 worker": {"size": 96, "cache": "stream", "workers": 1, "batches": 12},
    "streamed, 96 px, 2 workers": {"size": 96, "cache": "stream", "workers": 2, "batches": 16},
}
WARM = 4  # steps and batches that are not counted
BATCH = COMMON.classes_per_batch * COMMON.samples_per_class
PARTS = {
    "network forward": [(Embedder, "forward")],
    "network backward": [(Fabric, "backward")],
    "batch and augmentation": [(CachedBatches, "_batch"), (Augment, "__call__")],
    "selection and memory": [(PRISM, "forward"), (PRISM, "enqueue")],
    "loss": [(MemoryContrastiveLoss, "forward")],
    "optimiser": [(torch.optim.AdamW, "step")],
    "guard against bad steps": [(Guard, "remember"), (Guard, "accepts")],
}
"""What of a step is timed; what is left is the rest."""


class Stopwatch:
    """Processor seconds of the parts of a program, each without the parts inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.inside = ["rest"]
        self.since = time.process_time()

    def turn_to(self, part: str | None) -> None:
        """Go into a part, or, None, out of the one at hand."""
        now = time.process_time()
        here = self.inside[-1]
        self.seconds[here] = self.seconds.get(here, 0.0) + now - self.since
        self.since = now
        if part is None:
            self.inside.pop()
        else:
            self.inside.append(part)

    def timed(self, function: Callable, part: str) -> Callable:
        def wrapped(*arguments, **options):
            self.turn_to(part)
            try:
                return function(*arguments, **options)
            finally:
                self.turn_to(None)

        return wrapped


def trained(name: str) -> dict:
    """A whole run, its images a second and the shares of its parts."""
    config = TrainConfig(**{**vars(COMMON), **TRAINED[name]})
    table = read_table(Path(os.environ["PRISM_DATA"], "grocery.parquet"))
    watch, moments, seconds = Stopwatch(), [], dict.fromkeys([*PARTS, "rest"], 0.0)

    def stepped(show: RunProgress, images: int) -> None:
        moments.append(time.perf_counter())
        if len(moments) == WARM:
            watch.turn_to("rest")
            watch.seconds.clear()
        elif len(moments) == config.steps:
            watch.turn_to("rest")
            seconds.update(watch.seconds)

    forward = watch.timed(Embedder.forward, "network forward")

    def embed(embedder: Embedder, images: torch.Tensor) -> torch.Tensor:
        """The gradient of the embeddings parts the backward pass into that of the loss and that of the network."""
        embeddings = forward(embedder, images)
        if embeddings.requires_grad:
            embeddings.register_hook(lambda gradient: watch.turn_to("network backward"))
        return embeddings

    def backward(fabric: Fabric, loss: torch.Tensor) -> None:
        watch.turn_to("loss")
        original(fabric, loss)
        watch.turn_to(None)
        watch.turn_to(None)

    original = Fabric.backward
    with ExitStack() as patches, tempfile.TemporaryDirectory() as folder:
        patches.enter_context(mock.patch.object(RunProgress, "step", stepped))
        patches.enter_context(mock.patch.object(Embedder, "forward", embed))
        patches.enter_context(mock.patch.object(Fabric, "backward", backward))
        for part, places in PARTS.items():
            for owner, method in places:
                if owner not in (Embedder, Fabric):
                    timed = watch.timed(getattr(owner, method), part)
                    patches.enter_context(mock.patch.object(owner, method, timed))
        train(table, config, Path(folder, "run"))
    total = sum(seconds.values())
    steps = config.steps - WARM
    return {
        "images_a_second": round(steps * BATCH / (moments[-1] - moments[WARM - 1]), 1),
        "processor_ms_a_step": {part: round(value / steps * 1e3, 2) for part, value in seconds.items()},
        "shares": {part: round(value / total, 4) for part, value in seconds.items()},
        **TRAINED[name],
    }


def loaded(size: int, cache: str, workers: int, batches: int) -> dict:
    """Batches made and thrown away."""
    table = read_table(Path(os.environ["PRISM_DATA"], "grocery.parquet")).split("train")
    images = open_images(table, size, Augment("photo"), workers=workers, cache=cache)
    stream = images.train(PKSampler(table.labels, COMMON.classes_per_batch, COMMON.samples_per_class), seed=0)
    for _ in range(WARM):
        next(stream)
    start = time.perf_counter()
    for _ in range(batches):
        next(stream)
    seconds = time.perf_counter() - start
    stream.close()
    return {"images_a_second": round(batches * BATCH / seconds, 1)}


def table(results: dict) -> str:
    lines = ["| whole training (MCL + PRISM, batches of 64) | images/s |", "|---|--:|"]
    for name, row in results["training"].items():
        lines.append(f"| {name}, {row['image_size']} px | {row['images_a_second']:,.0f} |")
    lines += ["", "| loading alone | images/s |", "|---|--:|"]
    lines += [f"| {name} | {row['images_a_second']:,.0f} |" for name, row in results["loading"].items()]
    names = list(results["training"])
    lines += ["", f"| share of a step | {' | '.join(names)} |", "|---|" + "--:|" * len(names)]
    for part in [*PARTS, "rest"]:
        shares = [f"{results['training'][name]['shares'][part]:.1%}" for name in names]
        lines.append(f"| {part} | {' | '.join(shares)} |")
    machine = results["machine"]
    about = f"{machine['threads']} threads, torch {machine['torch']}; shares by processor time."
    return "\n".join(
        [*lines, "", f"{about} `python benchmarks/throughput.py --out benchmarks/throughput`.", ""]
    )


def draw(results: dict, file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4), constrained_layout=True)
    rates = {f"training, {name}": row for name, row in results["training"].items()} | results["loading"]
    colours = ["#1f6feb"] * len(results["training"]) + ["#9aa4ae"] * len(results["loading"])
    bars = left.barh(list(rates), [row["images_a_second"] for row in rates.values()], color=colours)
    left.bar_label(bars, fmt="{:,.0f}", padding=3)
    left.set(xscale="log", xlabel="images/s")
    left.margins(x=0.15)
    left.invert_yaxis()
    done = [0.0] * len(results["training"])
    for part in [*PARTS, "rest"]:
        shares = [100 * row["shares"][part] for row in results["training"].values()]
        right.barh(list(results["training"]), shares, left=done, label=part)
        done = [a + b for a, b in zip(done, shares, strict=True)]
    right.set_xlabel("% of a step")
    right.invert_yaxis()
    right.margins(x=0)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    for panel in (left, right):
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/throughput"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=[*TRAINED, "loading"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "results.json"
    machine = {"cores": os.cpu_count(), "threads": arguments.threads, "torch": torch.__version__}
    results = {"machine": machine | {"python": platform.python_version()}, "training": {}, "loading": {}}
    if file.is_file():
        results |= json.loads(file.read_text())
    jobs = [("training", name, lambda name=name: trained(name), name) for name in TRAINED]
    jobs += [("loading", name, lambda how=how: loaded(**how), "loading") for name, how in LOADED.items()]
    for kind, name, measure, group in jobs:
        if name in results[kind] or arguments.only not in (None, group):
            continue
        results[kind][name] = measure()
        file.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{kind}, {name}: {results[kind][name]['images_a_second']} images/s", flush=True)
    (arguments.out / "table.md").write_text(table(results))
    draw(results, arguments.out / "throughput.png")


if __name__ == "__main__":
    main()
