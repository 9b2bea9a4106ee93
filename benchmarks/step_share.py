"""What share of a training step does selection take? Times the parts of steps of MCL + PRISM, side by side in one run.

    PRISM_DATA=folder python benchmarks/step_share.py --out benchmarks/step_share.json [--steps 60] [--threads 1]
                                                      [--device cpu] [--resnet-steps 2]

A step is: batch and augmentation, network forward, selection (similarities, threshold, estimate), loss, backward,
update, enqueue. The shares are (selection + enqueue) / step, and the same with the loss, which compares with the whole
memory; median over steps, by processor time on the CPU; the memory is full. On a GPU the parts are timed by waiting for
the device after each, which hides that it computes one while the processor prepares the next: there, whole steps
without a wait are timed too, with the selection and, all kept, without it. "random" is a ResNet-50 on random images of
224 pixels, with the classes and the memory of Stanford Online Products.
"""

import argparse
import itertools
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import torch

from prism_dml.data import Augment, Batch, PKSampler, open_images, read_table
from prism_dml.methods.base import TrainingSet
from prism_dml.methods.mcl import PrismMCL
from prism_dml.models import Embedder
from prism_dml.training import TrainConfig

SETTINGS = {"omniglot": (32, "drawing"), "grocery": (48, "photo")}


def measure(data: str, precision: str, steps: int, device: str) -> dict:
    size, augment = SETTINGS[data]
    table = read_table(Path(os.environ["PRISM_DATA"], f"{data}.parquet")).split("train")
    images = open_images(table, size, Augment(augment))
    labels = torch.from_numpy(table.labels)
    batches = images.train(PKSampler(table.labels, 16, 4), seed=0)
    row = {"data": data, "backbone": "small", "image_size": size}
    embedder = Embedder("small", image_size=size)
    return row | measure_steps(
        embedder, TrainingSet(labels, table.num_classes), batches, precision, steps, device
    )


def measure_resnet(precision: str, steps: int, device: str) -> dict:
    classes, samples = 11_318, 59_551
    data = TrainingSet(torch.arange(samples) % classes, classes)
    images = torch.randn(64, 3, 224, 224)

    def batches() -> Iterator[Batch]:
        for number in itertools.count():
            index = (torch.arange(64) + 64 * number) % samples
            yield Batch(images, data.labels[index], index)

    row = {"data": "random", "backbone": "resnet50", "image_size": 224}
    return row | measure_steps(Embedder("resnet50"), data, batches(), precision, steps, device)


def measure_steps(
    embedder: Embedder, data: TrainingSet, batches: Iterator[Batch], precision: str, steps: int, device: str
) -> dict:
    method = PrismMCL(embedder, data, TrainConfig(noise_rate="auto")).to(device)
    optimizer = torch.optim.AdamW(method.parameters(), 1e-3)
    fill = torch.nn.functional.normalize(torch.randn(data.num_samples, 128), dim=1)
    method.selector.enqueue(
        fill.to(device), data.labels.to(device), torch.arange(data.num_samples).to(device)
    )
    times: dict[str, list[float]] = {}

    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def step(lap: Callable[[str], None], select: bool = True) -> None:
        batch = next(batches)
        images, labels, index = (column.to(device) for column in (batch.images, batch.labels, batch.index))
        lap("data")
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed"):
            embeddings = method.embedder(images)
            lap("forward")
            if select:
                kept = method.selector(embeddings.detach(), labels, index).keep
            else:
                kept = torch.ones_like(labels, dtype=torch.bool)
            lap("selection")
            embeddings, labels, index = embeddings[kept], labels[kept], index[kept]
            bank = method.bank
            loss = method.criterion(embeddings, labels, bank.embeddings, bank.labels, index, bank.index)
            lap("loss")
        optimizer.zero_grad()
        loss.backward()
        lap("backward")
        optimizer.step()
        lap("update")
        method.selector.enqueue(embeddings.detach(), labels, index)
        lap("enqueue")

    for _ in range(steps):
        clock = now()

        def lap(part: str) -> None:
            nonlocal clock
            times.setdefault(part, []).append(now() - clock)
            clock = now()

        step(lap)
    warm = min(5, steps // 2)  # the first steps warm up
    parts = {part: median(values[warm:]) * 1e3 for part, values in times.items()}
    selection, whole = parts["selection"] + parts["enqueue"], sum(parts.values())
    row = {"classes": data.num_classes, "bank": data.num_samples, "batch": 64, "precision": precision}
    row |= {"milliseconds": parts, "selection_share": selection / whole}
    row |= {"selection_and_loss_share": (selection + parts["loss"]) / whole}
    if device == "cuda":
        unbroken: dict[bool, list[float]] = {True: [], False: []}
        for select in (True, False) * 3:
            start = now()
            for _ in range(steps):
                step(lambda part: None, select)
            unbroken[select].append((now() - start) / steps * 1e3)
        with_it, without_it = (median(unbroken[select]) for select in (True, False))
        row |= {"unbroken_milliseconds": with_it, "unbroken_share": 1 - without_it / with_it}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device)
    parser.add_argument("--resnet-steps", type=int, default=60 if device == "cuda" else 2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = [
        measure(data, precision, arguments.steps, arguments.device)
        for data in SETTINGS
        for precision in ("32-true", "bf16-mixed")
    ]
    rows += [
        measure_resnet(precision, arguments.resnet_steps, arguments.device)
        for precision in ("32-true", "bf16-mixed")
    ]
    for row in rows:
        parts = ", ".join(f"{part} {value:.1f}" for part, value in row["milliseconds"].items())
        print(
            f"{row['data']} {row['precision']}: selection {row['selection_share']:.1%} of a step, "
            f"with the loss {row['selection_and_loss_share']:.1%} ({parts} ms)"
        )
        if "unbroken_share" in row:
            print(
                f"    unbroken {row['unbroken_milliseconds']:.1f} ms, selection {row['unbroken_share']:.1%} of it"
            )
    machine: dict = {
        "device": arguments.device,
        "cores": os.cpu_count(),
        "threads": arguments.threads,
        "torch": torch.__version__,
    }
    machine["python"] = platform.python_version()
    if arguments.device == "cuda":
        machine["gpu"] = torch.cuda.get_device_name()
    arguments.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
