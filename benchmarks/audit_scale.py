"""Time and peak memory of `find_label_issues` on many made-up embeddings.

    python benchmarks/audit_scale.py [--samples 1000000] [--dim 512] [--classes 10000] [--threads 2] [--out FILE]

Embeddings lie about a random direction for each class; a fifth of the labels is wrong at random. Prints, and writes to
FILE, one JSON object: seconds, peak memory of the process in GB, with and without the embeddings themselves, and how
well the wrong labels were found.
"""

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import f1_score, roc_auc_score

from prism_dml import find_label_issues

WRONG = 0.2
SPREAD = 1.2  # length of a sample's deviation from its class's unit direction


def synthetic(samples: int, dim: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings (N, D) float32, given labels (N,), and which are wrong (N,)."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((classes, dim), dtype=np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    truth = rng.integers(classes, size=samples)
    embeddings = np.empty((samples, dim), np.float32)
    for start in range(0, samples, 65_536):
        part = slice(start, start + 65_536)
        noise = rng.standard_normal(embeddings[part].shape, dtype=np.float32)
        embeddings[part] = directions[truth[part]] + noise * (SPREAD / dim**0.5)
    wrong = rng.random(samples) < WRONG
    labels = np.where(wrong, (truth + rng.integers(1, classes, samples)) % classes, truth)
    return embeddings, labels, wrong


def peak_gb() -> float:
    """Peak resident memory of this process so far; Linux counts in KiB, macOS in bytes."""
    return (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--classes", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)  # FAISS and torch share OpenMP's

    embeddings, labels, wrong = synthetic(arguments.samples, arguments.dim, arguments.classes, seed=0)
    before = peak_gb()
    start = time.monotonic()
    issues = find_label_issues(embeddings, labels)
    seconds = time.monotonic() - start
    report = {name: getattr(arguments, name) for name in ("samples", "dim", "classes", "threads")} | {
        "seconds": round(seconds, 1),
        "peak_gb": round(peak_gb(), 2),
        "peak_gb_beside_data": round(peak_gb() - before, 2),
        "auroc": round(roc_auc_score(~wrong, issues.label_score), 4),
        "f1": round(f1_score(wrong, issues.is_label_issue), 4),
        "rate": round(issues.attrs["noise_rate"], 4),
        "wrong": round(float(wrong.mean()), 4),
    }
    print(json.dumps(report))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
