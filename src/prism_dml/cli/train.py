"""``prism train``."""

from __future__ import annotations

import logging
import shlex
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism_dml.cli.output import print_json, print_table
from prism_dml.training.config import TrainConfig

if TYPE_CHECKING:
    from prism_dml.data import RemoteFile

logger = logging.getLogger("prism_dml")


def train(
    data: str, config: TrainConfig, *, out: Path | None = None, resume: bool = False, json: bool = False
) -> None:
    """Train an embedding on images whose labels cannot be trusted.

    Ctrl-C leaves a checkpoint; the same command with --resume goes on from there, bit for bit.

    Args:
        data: Folder of class folders, CSV, or parquet, on disk or at a URL (s3://, gs://, https:// ...); its split
            "train", where it has splits.
        config: How to train.
        out: Folder of the run; runs/NAME of the data if not given.
        resume: Go on with the run in that folder.
        json: Print the result as JSON.

    Raises:
        ValueError: the data cannot be read, the options do not fit together, or the run is not there.
    """
    from prism_dml.data import place, refuse_input
    from prism_dml.training import train as run_training
    from prism_dml.training.ranks import is_first
    from prism_dml.training.result import EMBEDDINGS

    source = place(data)
    run = Path("runs") / _name(source) if out is None else out
    refuse_input(run / EMBEDDINGS, source)
    if is_first():
        _warn_of_no_effect(config)
    result = run_training(data, config, run, resume)
    if not is_first():  # of several that torchrun has started, one is enough to tell
        return
    if json:
        print_json({"out": str(run), **result})
    else:
        _show(run, data, config, result)


def _warn_of_no_effect(config: TrainConfig) -> None:
    """Name settings of other methods that are not as they are by default."""
    from prism_dml.methods.config import MethodConfig
    from prism_dml.methods.registry import find_method

    reads = find_method(config.method).reads | {"method"}
    for field in fields(MethodConfig):
        if field.name not in reads and getattr(config, field.name) != field.default:
            option = field.name.replace("_", "-")
            logger.warning("--%s has no effect on method %s", option, config.method)


def _name(data: Path | RemoteFile) -> str:
    """What the data are called: their folder, or file without its suffix; of a pattern, the folder of its files."""
    from prism_dml.data.readers import LISTS
    from prism_dml.files import resolved

    if "*" in data.name:
        return _name(data.parent)
    if isinstance(data, Path) and data.name in ("", ".."):
        data = resolved(data)
    is_file = data.suffix.lower() in (*LISTS, ".parquet") and not (isinstance(data, Path) and data.is_dir())
    return data.stem if is_file else data.name


def _show(run: Path, data: str, config: TrainConfig, result: dict[str, Any]) -> None:
    from prism_dml.training.result import read_run

    settings = read_run(run)["settings"]
    # Of a stream that nobody has seen the whole of, it is not known how many cannot be read.
    images = f"{result['images']:,}" if "images" in result else f"at most {settings['num_samples']:,}"
    learned = f"{images} images of {settings['num_classes']:,} classes"
    rows = [("Learned from", learned), *_measures(result)]
    print_table(f"Trained {result['steps']:,} steps: {run}", ("Measure", "Value"), rows)
    command = ["prism", "evaluate", str(run), data]
    if "test" not in settings["splits"]:  # an evaluation on the images just learned from says little
        command = ["prism", "audit", str(run), data, "--out", str(run / "audit")]
    if config.max_unreadable != TrainConfig.max_unreadable:
        command += ["--max-unreadable", str(config.max_unreadable)]
    print(f"Next: {shlex.join(command)}")


def _measures(result: dict[str, Any]) -> list[tuple[str, str]]:
    judgement = result.get("judgement", {})
    measures = {
        "Precision@1 on the images set aside": result.get("validation_precision_at_1"),
        "Estimated share of wrong labels": result.get("noise_rate_estimate"),
        "Purity: kept labels that are right": judgement.get("purity"),
        "Recall: right labels that are kept": judgement.get("clean_recall"),
    }
    return [(name, f"{value:.3f}") for name, value in measures.items() if value is not None]
