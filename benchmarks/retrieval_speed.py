"""How fast are exact retrieval metrics, and how much memory do they take beside the embeddings?

    python benchmarks/retrieval_speed.py --out benchmarks/retrieval_speed [--threads 2] [--only sop/prism]

Two settings, of made-up unit vectors round a random direction for each class:

sop      60,502 x 512 in 11,316 classes, as many as the test split of Stanford Online Products; each is searched for
         among the others
million  10,000 queries against 1,000,000 x 256 in 50,000 classes (a million queries would take hours on two cores)

and three sides: `retrieval_metrics` of Prism; a bare search of `faiss.IndexFlatIP`, just as deep, the adding of the
vectors included, which gives no metric; `AccuracyCalculator` of pytorch-metric-learning (sop only). Each side is
measured in a process of its own, one after the other. What is measured already, in results.json, is not measured again.
Peak memory is resident memory, sampled every few milliseconds, above what the process has with libraries and embeddings
loaded and a small search done. Linux only.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

SETTINGS = {
    "sop": {"references": 60_502, "classes": 11_316, "dim": 512, "queries": None},
    "million": {"references": 1_000_000, "classes": 50_000, "dim": 256, "queries": 10_000},
}
SIDES = {"sop": ("prism", "faiss", "pytorch-metric-learning"), "million": ("prism", "faiss")}
NAMES = {
    "prism": "retrieval_metrics",
    "faiss": "bare faiss.IndexFlatIP",
    "pytorch-metric-learning": "AccuracyCalculator of pytorch-metric-learning",
}
TITLES = {
    "sop": "60,502 x 512, each among the others",
    "million": "10,000 queries against 1,000,000 x 256",
}
SPREAD = 2.2  # length of a sample's deviation from its class's unit direction: some are found, some are not


def vectors(rng: np.random.Generator, directions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Unit vectors (N, D) float32 round their class's direction."""
    rows = np.empty((len(labels), directions.shape[1]), np.float32)
    for start in range(0, len(labels), 16_384):
        part = slice(start, start + 16_384)
        rows[part] = rng.standard_normal(rows[part].shape, dtype=np.float32) * (SPREAD / rows.shape[1] ** 0.5)
        rows[part] += directions[labels[part]]
        rows[part] /= np.linalg.norm(rows[part], axis=1, keepdims=True)
    return rows


def made_up(references: int, classes: int, dim: int, queries: int | None) -> tuple[np.ndarray, ...]:
    """References (N, D) and their labels, two of each class at least; queries and theirs, or the references again."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((classes, dim), dtype=np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    labels = np.concatenate(
        [np.tile(np.arange(classes), 2), rng.integers(classes, size=references - 2 * classes)]
    )
    rng.shuffle(labels)
    found = vectors(rng, directions, labels)
    if queries is None:
        return found, labels, found, labels
    asked = rng.integers(classes, size=queries)
    return found, labels, vectors(rng, directions, asked), asked


class Peak:
    """Highest resident memory while it is entered, above that at the start; sampled by a thread."""

    def __enter__(self) -> "Peak":
        self.before = self.highest = self.resident()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.ended.wait(0.005):
            self.highest = max(self.highest, self.resident())

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.thread.join()
        self.extra = max(self.highest, self.resident()) - self.before

    @staticmethod
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def side_of(name: str, among_themselves: bool):
    """What is measured: (references, labels, queries, labels, depth) -> MAP@R, or None."""
    if name == "prism":
        from prism_dml import retrieval_metrics

        def run(found, labels, asked, given, depth):
            base = (None, None) if among_themselves else (found, labels)
            return retrieval_metrics(asked, given, *base)["map_at_r"]

    elif name == "faiss":
        import faiss

        def run(found, labels, asked, given, depth):
            index = faiss.IndexFlatIP(found.shape[1])
            index.add(found)
            index.search(asked, depth + among_themselves)  # itself is found as well

    else:
        import torch
        from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

        names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")

        def run(found, labels, asked, given, depth):
            calculator = AccuracyCalculator(include=names, k="max_bin_count", device=torch.device("cpu"))
            return calculator.get_accuracy(asked, given)["mean_average_precision_at_r"]

    return run


def measure(setting: str, side: str, threads: int) -> dict:
    """One side, in this process."""
    import faiss
    import torch

    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    about = SETTINGS[setting]
    among_themselves = about["queries"] is None
    found, labels, asked, given = made_up(**about)
    depth = max(8, int(np.bincount(labels).max()) - among_themselves)  # Recall@8 is asked for
    run = side_of(side, among_themselves)
    run(found[:3000], labels[:3000] % 10, asked[:3000], given[:3000] % 10, depth)
    with Peak() as peak:
        processor, wall = time.process_time(), time.perf_counter()
        map_at_r = run(found, labels, asked, given, depth)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
    row = {"setting": setting, "side": side, **about, "depth": depth, "threads": threads}
    row |= {"seconds": round(wall, 2), "processor_seconds": round(processor, 2)}
    row |= {"extra_mib": round(peak.extra / 2**20), "map_at_r": map_at_r}
    return row | {
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "faiss": faiss.__version__,
        }
    }


def table(rows: list[dict]) -> str:
    lines = [
        "| setting | side | s | times bare faiss | processor s | peak extra memory, MiB | MAP@R |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for setting, sides in SIDES.items():
        here = {row["side"]: row for row in rows if row["setting"] == setting}
        for side in sides:
            if side not in here:
                continue
            row = here[side]
            ratio = f"{row['seconds'] / here['faiss']['seconds']:.2f}" if "faiss" in here else ""
            quality = "" if row["map_at_r"] is None else f"{row['map_at_r']:.6f}"
            lines.append(
                f"| {TITLES[setting]} | {NAMES[side]} | {row['seconds']:.1f} | {ratio} | "
                f"{row['processor_seconds']:.1f} | {row['extra_mib']:,} | {quality} |"
            )
    threads = sorted({row["threads"] for row in rows})
    return "\n".join([*lines, "", f"{threads[0]} threads; `python benchmarks/retrieval_speed.py`.", ""])


def draw(rows: list[dict], file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(2, len(SIDES), figsize=(11, 4.5), constrained_layout=True)
    for column, setting in enumerate(SIDES):
        here = [row for row in rows if row["setting"] == setting]
        names = [NAMES[row["side"]].replace(" of ", "\nof ") for row in here]
        colours = ["#1f6feb" if row["side"] == "prism" else "#9aa4ae" for row in here]
        for panel, key, label in zip(
            panels[:, column], ("seconds", "extra_mib"), ("s", "peak extra memory, MiB"), strict=True
        ):
            bars = panel.barh(names, [row[key] for row in here], color=colours)
            panel.bar_label(bars, fmt="{:,.0f}", padding=3)
            panel.set_xlabel(label)
            panel.margins(x=0.15)
            panel.invert_yaxis()
            panel.spines[["top", "right"]].set_visible(False)
        panels[0, column].set_title(TITLES[setting])
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/retrieval_speed"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", help="one side of one setting, such as sop/faiss")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure.split("/"), arguments.threads)))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "results.json"
    rows = json.loads(file.read_text()) if file.is_file() else []
    order = [(setting, side) for setting, sides in SIDES.items() for side in sides]
    for setting, side in order:
        known = any((row["setting"], row["side"]) == (setting, side) for row in rows)
        if known or arguments.only not in (None, f"{setting}/{side}"):
            continue
        # Threads that wait are idle, so that processor seconds count work.
        environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "OMP_WAIT_POLICY": "passive"}
        command = [
            sys.executable,
            __file__,
            "--measure",
            f"{setting}/{side}",
            "--threads",
            str(arguments.threads),
        ]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        rows.append(json.loads(result.stdout.splitlines()[-1]))
        rows.sort(key=lambda row: order.index((row["setting"], row["side"])))
        file.write_text(json.dumps(rows, indent=1) + "\n")
        print(f"{setting}/{side}: {rows[-1]['seconds']} s")
    (arguments.out / "table.md").write_text(table(rows))
    draw(rows, arguments.out / "retrieval_speed.png")
    print(table(rows))


if __name__ == "__main__":
    main()
