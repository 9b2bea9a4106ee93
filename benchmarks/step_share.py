"""What share of a training step does selection take? Times the parts of steps of MCL + PRISM, side by side in one run.

    PRISM_DATA=folder python benchmarks/step_share.py --out benchmarks/step_share.json [--steps 60] [--threads 1]

A step is: batch and augmentation, network forward, selection (similarities, threshold, estimate), loss, backward,
update, enqueue. The share is (selection + enqueue) / step, by processor time, median over steps; the memory is full.
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path
from statistics import median

import torch

from prism_dml.data import Augment, PKSampler, open_images, read_table
from prism_dml.methods.base import TrainingSet
from prism_dml.methods.mcl import PrismMCL
from prism_dml.models import Embedder
from prism_dml.training import TrainConfig

SETTINGS = {"omniglot": (32, "drawing"), "grocery": (48, "photo")}


def measure(data: str, precision: str, steps: int) -> dict:
    size, augment = SETTINGS[data]
    table = read_table(Path(os.environ["PRISM_DATA"], f"{data}.parquet")).split("train")
    images = open_images(table, size, Augment(augment))
    method = PrismMCL(
        Embedder("small", image_size=size),
        TrainingSet(torch.from_numpy(table.labels), table.num_classes),
        TrainConfig(noise_rate="auto"),
    )
    optimizer = torch.optim.AdamW(method.parameters(), 1e-3)
    batches = images.train(PKSampler(table.labels, 16, 4), seed=0)
    fill = torch.nn.functional.normalize(torch.randn(len(table), 128), dim=1)
    method.selector.enqueue(fill, torch.from_numpy(table.labels), torch.arange(len(table)))
    times: dict[str, list[float]] = {}
    for _ in range(steps):
        clock = time.process_time()

        def lap(part: str) -> None:
            nonlocal clock
            now = time.process_time()
            times.setdefault(part, []).append(now - clock)
            clock = now

        batch = next(batches)
        lap("data")
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            embeddings = method.embedder(batch.images)
            lap("forward")
            kept = method.selector(embeddings.detach(), batch.labels, batch.index).keep
            lap("selection")
            embeddings, labels, index = embeddings[kept], batch.labels[kept], batch.index[kept]
            loss = method.criterion(embeddings, labels, method.bank.embeddings, method.bank.labels)
            lap("loss")
        optimizer.zero_grad()
        loss.backward()
        lap("backward")
        optimizer.step()
        lap("update")
        method.selector.enqueue(embeddings.detach(), labels, index)
        lap("enqueue")
    parts = {part: median(values[5:]) * 1e3 for part, values in times.items()}  # the first steps warm up
    share = (parts["selection"] + parts["enqueue"]) / sum(parts.values())
    row = {"data": data, "image_size": size, "classes": table.num_classes, "bank": len(table), "batch": 64}
    return row | {"precision": precision, "milliseconds": parts, "selection_share": share}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = [
        measure(data, precision, arguments.steps)
        for data in SETTINGS
        for precision in ("32-true", "bf16-mixed")
    ]
    for row in rows:
        parts = ", ".join(f"{part} {value:.1f}" for part, value in row["milliseconds"].items())
        print(
            f"{row['data']} {row['precision']}: selection {row['selection_share']:.1%} of a step ({parts} ms)"
        )
    machine = {"cores": os.cpu_count(), "threads": arguments.threads, "torch": torch.__version__}
    machine["python"] = platform.python_version()
    arguments.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
