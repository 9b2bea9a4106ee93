"""How fast are the selector and the memory contrastive loss? Everything side by side in one run.

    python benchmarks/selection_speed.py --out benchmarks/selection_speed [--threads 2] [--device cpu]

- The selector's step (call and enqueue, sample indices given) beside the published algorithm written down as it reads:
  "loops" goes over samples and classes, "rows" only over samples, one matrix-vector product each.
- The same step, and that of similarity vmf, beside the one matrix product that they cannot do without, B x C x D.
- The memory contrastive loss, forward and backward, beside pytorch-metric-learning's CrossBatchMemory.
- Growth of the step with batch, classes, bank and dimensions, for each similarity, and of the loss.

What is compared takes turns, and the fastest turn counts: on a shared machine, others can only slow it down. The table
also has the median of ours. One thread on the CPU is timed by the process's own clock, all else by the wall's.
Embeddings are random unit vectors; every sample is in the memory once, as after an epoch.
"""

import argparse
import ctypes
import itertools
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import ContrastiveLoss as PmlContrastiveLoss
from pytorch_metric_learning.losses import CrossBatchMemory
from pytorch_metric_learning.reducers import SumReducer
from torch import Tensor
from torch.nn.functional import normalize

from prism_dml.losses import ContrastiveLoss, MemoryContrastiveLoss
from prism_dml.selection import PRISM

RATE = 0.3
SCALES = {"CARS": (98, 8_054), "SOP": (11_318, 59_551), "large": (100_000, 1_000_000)}  # classes, bank
BATCHES = (64, 1024)
PARTS = ("selector", "loss", "growth")
MOST_LOOPED = 7_000_000  # samples x classes: beyond, the loops take minutes and are left out
MOST_ROWS = 30_000_000  # the same for the loop over samples only
MOST_PRODUCTS = (
    200_000_000_000  # batch x bank x dimensions of the loss: beyond, it takes a minute and is left out
)
MOST_PAIRS = 20_000_000  # batch x bank: beyond, pytorch-metric-learning takes gigabytes and is left out
USUAL = {"batch": 64, "classes": 11_318, "bank": 59_551, "dimensions": 128}
SIMILARITIES, LOSS = ("centre", "vmf", "exact"), "loss"
GROWTH = {
    "batch": (64, 128, 256, 512, 1024),
    "classes": (2_000, 8_000, 32_000, 100_000),
    "bank": (8_000, 32_000, 128_000, 512_000),
    "dimensions": (64, 128, 256, 512),
}


class Transcription:
    """Selection as the paper tells it: AvgSim by class centres, softmax, smooth top-R; centres after each batch."""

    def __init__(self, classes: int, size: int, embeddings: Tensor, labels: Tensor, window: int = 30) -> None:
        self.classes, self.size, self.window = classes, size, window
        self.bank, self.labels, self.pointer = embeddings.clone(), labels.clone(), 0
        sums = torch.zeros(classes, embeddings.shape[1], device=labels.device).index_add_(
            0, labels, embeddings
        )
        self.centres = sums / torch.bincount(labels, minlength=classes).clamp(min=1)[:, None]
        self.quantiles: list[float] = []

    def step(self, embeddings: Tensor, labels: Tensor, by_class: bool) -> Tensor:
        probabilities = []
        for x, y in zip(embeddings, labels.tolist(), strict=True):
            if by_class:
                logits = [math.exp(torch.dot(x, centre)) for centre in self.centres]
                probabilities.append(logits[y] / sum(logits))
            else:
                probabilities.append(float((self.centres @ x).softmax(dim=0)[y]))
        clean = torch.tensor(probabilities)
        self.quantiles = [*self.quantiles, float(clean.quantile(RATE))][-self.window :]
        keep = (clean >= sum(self.quantiles) / len(self.quantiles)).to(labels.device)
        for x, y in zip(embeddings[keep], labels[keep], strict=True):
            self.bank[self.pointer], self.labels[self.pointer] = x, y
            self.pointer = (self.pointer + 1) % self.size
        for k in labels[keep].unique():
            self.centres[k] = self.bank[self.labels == k].mean(dim=0)
        return keep


def seconds_now(device: str) -> float:
    """What is timed is over; the process's own clock does not count what others do meanwhile."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.process_time() if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter()


def race(runs: dict[str, Callable[[], object]], device: str, seconds: float = 2.0) -> dict[str, dict]:
    """Milliseconds of each, fastest and median; after a first turn they take turns for `seconds`, once at least."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = None
    while end is None or time.perf_counter() < end or not min(map(len, times.values())):
        for name, run in runs.items():
            start = seconds_now(device)
            run()
            times[name].append((seconds_now(device) - start) * 1e3)
        if end is None:  # the first turn warms up
            end = time.perf_counter() + seconds
            times = {name: [] for name in runs}
    return {name: {"fastest": min(values), "median": median(values)} for name, values in times.items()}


def peak_megabytes(run: Callable[[], object], device: str) -> float:
    """What a call needs at most beyond what was there before."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 1e6

    def status(field: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6

    ctypes.CDLL("libc.so.6").malloc_trim(0)  # freed memory that is still resident would hide what is taken
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = status("VmRSS")
    run()
    return status("VmHWM") - before


def rows(count: int, dim: int, device: str, seed: int) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return normalize(torch.randn(count, dim, generator=generator, device=device), dim=1)


def filled(classes: int, bank: int, dim: int, similarity: str, device: str) -> tuple[PRISM, Tensor]:
    """A selector whose memory holds every sample once, and the samples' labels."""
    selector = PRISM(classes, dim, RATE, similarity, bank_size=bank).to(device)  # type: ignore[arg-type]
    labels = torch.randint(classes, (bank,), generator=torch.Generator().manual_seed(0)).to(device)
    for part in torch.arange(bank, device=device).split(65_536):
        selector.enqueue(rows(len(part), dim, device, int(part[0])), labels[part], part)
    return selector, labels


def stepper(selector: PRISM, labels: Tensor, batch: int) -> Callable[[], None]:
    """A step on the next batch of an epoch; the oldest samples of the memory are those that come next."""
    dim, device = selector.bank.embedding_dim, str(labels.device)
    batches = [rows(batch, dim, device, seed) for seed in range(4)]
    samples = torch.arange(batch, device=labels.device)
    turn = itertools.count()

    def step() -> None:
        number = next(turn)
        index = (samples + number * batch) % len(labels)
        embeddings, given = batches[number % 4], labels[index]
        selector(embeddings, given, index)
        selector.enqueue(embeddings, given, index)  # all, so that each sample stays in the memory once

    return step


def selector_rows(scale: str, dim: int, device: str) -> Iterator[dict]:
    classes, bank = SCALES[scale]
    selector, labels = filled(classes, bank, dim, "centre", device)
    published = Transcription(classes, bank, selector.bank.embeddings, selector.bank.labels)
    for batch in BATCHES:
        yield selector_row(scale, selector, published, labels, batch, device)


def selector_row(
    scale: str, selector: PRISM, published: Transcription, labels: Tensor, batch: int, device: str
) -> dict:
    dim, (classes, bank) = selector.bank.embedding_dim, SCALES[scale]
    embeddings, given = rows(batch, dim, device, 9), labels[:batch]
    step = stepper(selector, labels, batch)
    centres = selector.bank.centres
    row = {"scale": scale, "classes": classes, "bank": bank, "dimensions": dim, "batch": batch}
    vmf = PRISM(classes, dim, RATE, "vmf", bank=selector.bank).to(device)
    runs = {"step": step, "vmf": stepper(vmf, labels, batch), "product": lambda: embeddings @ centres.T}
    row["milliseconds"] = race(runs, device)
    row["peak_megabytes"] = peak_megabytes(step, device)
    row["state_megabytes"] = sum(t.nbytes for t in selector.state_dict().values()) / 1e6
    if batch * classes <= MOST_ROWS:
        runs = {"step": step, "rows": lambda: published.step(embeddings, given, by_class=False)}
        row["milliseconds"]["rows"] = race(runs, device)["rows"]
    if batch * classes <= MOST_LOOPED:
        start = seconds_now(device)
        published.step(embeddings, given, by_class=True)
        took = (seconds_now(device) - start) * 1e3
        row["milliseconds"]["loops"] = {"fastest": took, "median": took}  # once
    return row


def loss_rows(scale: str, dim: int, device: str) -> Iterator[dict]:
    for batch in BATCHES:
        if batch * dim * SCALES[scale][1] <= MOST_PRODUCTS:
            yield loss_row(scale, dim, batch, device)


def loss_row(scale: str, dim: int, batch: int, device: str) -> dict:
    """Ours: batch and bank; theirs: the bank, which the batch has entered. Margin 0.5, cosines, sums over pairs."""
    classes, bank = SCALES[scale]
    memory, raw = rows(bank, dim, device, 0), 2 * rows(batch, dim, device, 1)
    labels = torch.randint(classes, (bank,), generator=torch.Generator().manual_seed(0)).to(device)
    memory[:batch] = normalize(raw, dim=1)
    memory[batch : 2 * batch] = normalize(
        memory[:batch] + 0.5 * memory[batch : 2 * batch], dim=1
    )  # pairs to push
    given, index = labels[:batch], torch.arange(bank, device=device)
    leaf = raw.requires_grad_()
    pml = PmlContrastiveLoss(pos_margin=1, neg_margin=0.5, distance=CosineSimilarity(), reducer=SumReducer())
    theirs_memory = CrossBatchMemory(pml, dim, bank)
    theirs_memory.embedding_memory, theirs_memory.label_memory = memory.clone(), labels.clone()
    theirs_memory.has_been_filled = True
    ours_criterion = MemoryContrastiveLoss()

    def gradient(loss: Tensor) -> Tensor:
        leaf.grad = None
        loss.backward()
        return leaf.grad

    def ours() -> Tensor:
        unit = normalize(leaf, dim=1)
        return ours_criterion(unit, given, memory, labels, index[:batch], index)

    def theirs() -> Tensor:
        theirs_memory.queue_idx = 0  # the batch overwrites its own rows: the memory stays the same
        return theirs_memory(leaf, given) / batch

    row = {"scale": scale, "classes": classes, "bank": bank, "dimensions": dim, "batch": batch}
    runs = {"ours": lambda: gradient(ours())}
    if batch * bank <= MOST_PAIRS:
        runs["library"] = lambda: gradient(theirs())
        # Equal settings, but that theirs is S - margin where ours is S for a pair pushed apart, and has no batch part.
        mine, other = ours() - ContrastiveLoss()(normalize(leaf, dim=1), given), theirs()
        cosines = normalize(leaf.detach(), dim=1) @ memory.T
        pushed = ((cosines > 0.5) & (given[:, None] != labels)).sum() / batch
        row["pushed_pairs_each"] = float(pushed)
        row["loss_difference"] = float((mine - other - 0.5 * pushed).detach().abs())
        row["gradient_difference"] = float((gradient(mine) - gradient(other)).abs().max())
        row["loss"] = float(other.detach())
    row["milliseconds"] = race(runs, device)
    row["peak_megabytes"] = {name: peak_megabytes(run, device) for name, run in runs.items()}
    return row


def loss_stepper(size: dict[str, int], device: str) -> Callable[[], object]:
    memory = rows(size["bank"], size["dimensions"], device, 0)
    labels = torch.randint(size["classes"], (size["bank"],), generator=torch.Generator().manual_seed(0))
    labels, index = labels.to(device), torch.arange(size["bank"], device=device)
    part, leaf = slice(size["batch"]), rows(size["batch"], size["dimensions"], device, 1).requires_grad_()
    criterion = MemoryContrastiveLoss()
    return lambda: criterion(leaf, labels[part], memory, labels, index[part], index).backward()


def growth(device: str) -> list[dict]:
    curves = []
    for similarity, axis in itertools.product((*SIMILARITIES, LOSS), GROWTH):
        points = []
        for value in GROWTH[axis]:
            size = USUAL | {axis: value}
            if similarity == LOSS:
                step = loss_stepper(size, device)
            else:
                selector, labels = filled(
                    size["classes"], size["bank"], size["dimensions"], similarity, device
                )
                step = stepper(selector, labels, size["batch"])
            points.append(race({"step": step}, device, seconds=0.5)["step"]["fastest"])
        exponent = float(np.polyfit(np.log(GROWTH[axis]), np.log(points), 1)[0])
        curves.append(
            {"similarity": similarity, "axis": axis, "values": GROWTH[axis], "milliseconds": points}
            | {"exponent": exponent}
        )
        print(f"{similarity:7s} {axis:10s} exponent {exponent:.2f}", flush=True)
    return curves


def plot(curves: list[dict], path: Path) -> None:
    figure, axes = plt.subplots(1, len(GROWTH), figsize=(13, 3.4), sharey=True, layout="constrained")
    for curve in curves:
        axis = axes[list(GROWTH).index(curve["axis"])]
        label = f"{curve['similarity']}: {curve['exponent']:.2f}"
        axis.loglog(curve["values"], curve["milliseconds"], marker="o", label=label)
    for axis, name in zip(axes, GROWTH, strict=True):
        rest = ", ".join(f"{key} {value:,}" for key, value in USUAL.items() if key != name)
        axis.set_xlabel(name)
        axis.set_xticks(GROWTH[name], [f"{value:,}" for value in GROWTH[name]])
        axis.minorticks_off()
        axis.set_title(rest, fontsize=7)
        axis.legend(title="fitted exponent", fontsize=7, title_fontsize=7)
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("selector's step by similarity, loss; ms")
    figure.savefig(path, dpi=110)


def table(result: dict) -> str:
    machine = result["machine"]
    ranges = ", ".join(f"{name} {values[0]:,} to {values[-1]:,}" for name, values in GROWTH.items())
    usual = ", ".join(f"{name} {value:,}" for name, value in USUAL.items())
    lines = [
        "# Speed of the selector and of the memory contrastive loss",
        "",
        f"{machine['device']}, {machine['threads']} thread(s), torch {machine['torch']}; "
        "milliseconds, the fastest turn. "
        "Written by `benchmarks/selection_speed.py`, which says what is measured.",
        "",
        "## Selector: call and enqueue, similarity `centre`",
        "",
        "step: ours (median in brackets). loops: the published algorithm over samples and classes, one step; "
        "rows: over samples only. product: the one matrix product B x C x D. -: not timed, it would take "
        "minutes. vmf's: the step with similarity `vmf`. extra: peak memory of a step beyond the state.",
        "",
        "| scale | classes | bank | D | B | step | loops | loops / step | rows / step | step / product "
        "| vmf's / product | state MB | extra MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["selector"]:
        times = {name: value["fastest"] for name, value in row["milliseconds"].items()}
        step, looped = times["step"], times.get("loops")
        cells = [row["scale"], f"{row['classes']:,}", f"{row['bank']:,}", row["dimensions"], row["batch"]]
        cells.append(f"{step:.2f} ({row['milliseconds']['step']['median']:.2f})")
        cells += ["-", "-"] if looped is None else [f"{looped:,.0f}", f"{looped / step:,.0f}"]
        cells += [f"{times['rows'] / step:.1f}" if "rows" in times else "-"]
        cells += [f"{times[name] / times['product']:.2f}" for name in ("step", "vmf")]
        cells += [f"{row['state_megabytes']:,.1f}", f"{row['peak_megabytes']:.1f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += [
        "",
        "## Memory contrastive loss, forward and backward",
        "",
        "library: pytorch-metric-learning's `CrossBatchMemory(ContrastiveLoss)`, margins 1 and 0.5, cosine, sum "
        "over pairs divided by B. Ours has the batch's own pairs besides; without them, and with the margin added "
        "that theirs takes off every pair pushed apart, loss and gradient differ by what the table says. "
        "-: not timed, it would take gigabytes.",
        "",
        "| scale | bank | D | B | ours | library | library / ours | ours MB | library MB | loss | its difference "
        "| gradient's |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["loss"]:
        times, memory = row["milliseconds"], row["peak_megabytes"]
        cells = [row["scale"], f"{row['bank']:,}", row["dimensions"], row["batch"]]
        cells.append(f"{times['ours']['fastest']:.2f} ({times['ours']['median']:.2f})")
        if "library" in times:
            ratio = times["library"]["fastest"] / times["ours"]["fastest"]
            cells += [f"{times['library']['fastest']:.0f}", f"{ratio:.1f}"]
            cells += [f"{memory['ours']:.1f}", f"{memory['library']:.0f}", f"{row['loss']:.3f}"]
            cells += [f"{row['loss_difference']:.0e}", f"{row['gradient_difference']:.0e}"]
        else:
            cells += ["-", "-", f"{memory['ours']:.1f}", "-", "-", "-", "-"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += [
        "",
        "## Growth",
        "",
        "Exponent of the time of the selector's step, by similarity, and of the memory contrastive loss, over "
        f"{ranges}; the others stay at {usual}. See growth.png.",
        "",
        "| | " + " | ".join(GROWTH) + " |",
        "|---|" + "---|" * len(GROWTH),
    ]
    for similarity in (*SIMILARITIES, LOSS):
        cells = [f"{c['exponent']:.2f}" for c in result["growth"] if c["similarity"] == similarity]
        lines.append(f"| {similarity} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, help="the others stay as they are"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = arguments.device
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {os.cpu_count()} cores"
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = arguments.out / "results.json"
    result: dict = json.loads(results.read_text()) if results.exists() else {part: [] for part in PARTS}
    result["machine"] = {"device": name, "threads": arguments.threads, "torch": torch.__version__}
    result["machine"]["python"] = platform.python_version()

    def save() -> None:
        results.write_text(json.dumps(result, indent=1) + "\n")
        (arguments.out / "table.md").write_text(table(result))

    for part, measure in (("selector", selector_rows), ("loss", loss_rows)):
        if part not in arguments.parts:
            continue
        result[part] = []
        for scale, dim in itertools.product(SCALES, (128, 512)):
            for row in measure(scale, dim, device):
                result[part].append(row)
                save()
                times = {name: round(value["fastest"], 2) for name, value in row["milliseconds"].items()}
                print(part, scale, f"D={dim} B={row['batch']}", times, flush=True)
    if "growth" in arguments.parts:
        result["growth"] = growth(device)
        plot(result["growth"], arguments.out / "growth.png")
        save()


if __name__ == "__main__":
    main()
