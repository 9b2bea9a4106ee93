"""A run's whole state in one file that is replaced in one instant; safetensors, never pickle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prism_dml.models.files import CHECKPOINT, read_tensors, write_tensors

_VERSION = 2


def save_checkpoint(
    folder: Path, states: dict[str, dict[str, Tensor]], optimizer: Optimizer, notes: dict[str, Any]
) -> None:
    """Write the states of modules and optimiser, and JSON-able notes, into `folder`.

    Whenever the writing is cut short, the folder holds the old checkpoint whole or the new one. OSError, one line,
    if it cannot be written, for instance because the disk is full.
    """
    tensors = {f"{name}/{key}": value for name, state in states.items() for key, value in state.items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{number}/{key}": torch.as_tensor(value) for key, value in state.items()}
    write_tensors(folder / CHECKPOINT, "checkpoint", _VERSION, tensors, {"notes": json.dumps(notes)})


def read_notes(folder: Path) -> dict[str, Any]:
    """The notes of a folder's checkpoint, before there is anything to restore; ValueError as of `load_checkpoint`."""
    return _read(folder)[1]


def load_checkpoint(
    folder: Path,
    modules: dict[str, nn.Module],
    optimizer: Optimizer,
    check: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Restore what `save_checkpoint` wrote and return its notes.

    Args:
        folder: of the run.
        modules: as they were saved.
        optimizer: of the same modules.
        check: gets the notes before anything is restored; may raise ValueError.

    Raises:
        ValueError: there is no checkpoint, it is damaged, or it is of another run or version.
    """
    tensors, notes = _read(folder)
    if check is not None:
        check(notes)
    try:
        for name, module in modules.items():
            module.load_state_dict(_under(tensors, name))
    except RuntimeError as error:
        said = " ".join(str(error).split())
        raise ValueError(
            f"the checkpoint {folder / CHECKPOINT} is of another run or version: {said}"
        ) from None
    _restore(optimizer, _under(tensors, "optimizer"))
    return notes


def _read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = folder / CHECKPOINT
    if not path.is_file():
        raise ValueError(f"there is no checkpoint to go on from in {folder}")
    tensors, about = read_tensors(path, "checkpoint", _VERSION)
    return tensors, json.loads(about["notes"])


def _under(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")
    }


def _restore(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back the optimiser's tensors; learning rates are a function of the step and are not kept."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split("/", 1)
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
