"""``prism train``."""

from __future__ import annotations

from pathlib import Path

from prism_dml.training.config import TrainConfig


def train(data: Path, config: TrainConfig, *, out: Path | None = None, resume: bool = False) -> None:
    """Train an embedding on images whose labels cannot be trusted.

    Ctrl-C leaves a checkpoint; the same command with --resume goes on from there, bit for bit.

    Args:
        data: Folder of class folders, CSV, or parquet; its split "train", where it has splits.
        config: How to train.
        out: Folder of the run; runs/NAME of the data if not given.
        resume: Go on with the run in that folder.

    Raises:
        ValueError: the data cannot be read, the options do not fit together, or the run is not there.
    """
    from prism_dml.training import train as run_training

    run_training(data, config, out or Path("runs") / data.stem, resume)
