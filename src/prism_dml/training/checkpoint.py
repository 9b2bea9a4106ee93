"""A run's whole state in one file that is replaced in one instant; safetensors, never pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

FILE = "checkpoint.safetensors"
_VERSION = "1"


def save_checkpoint(
    folder: Path, modules: dict[str, nn.Module], optimizer: Optimizer, notes: dict[str, Any]
) -> None:
    """Write the state of modules and optimiser, and JSON-able notes, into `folder`.

    Whenever the writing is cut short, the folder holds the old checkpoint whole or the new one.
    """
    tensors = {
        f"{name}/{key}": value
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{number}/{key}": torch.as_tensor(value) for key, value in state.items()}
    # Cloned: safetensors refuses tensors that share memory (a bank known by two names) or are not contiguous.
    tensors = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in tensors.items()
    }
    temporary = folder / f".{FILE}.{os.getpid()}.tmp"
    try:
        save_file(tensors, temporary, {"version": _VERSION, "notes": json.dumps(notes)})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(folder / FILE)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(folder: Path, modules: dict[str, nn.Module], optimizer: Optimizer) -> dict[str, Any]:
    """Restore what `save_checkpoint` wrote and return its notes.

    Raises:
        ValueError: there is no checkpoint, it is damaged, or it is of another run or version.
    """
    path = folder / FILE
    if not path.is_file():
        raise ValueError(f"there is no checkpoint to go on from in {folder}")
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"the checkpoint {path} is damaged: {error}") from None
    if about.get("version") != _VERSION:
        raise ValueError(
            f"{path} has format version {about.get('version')}; this version of Prism reads {_VERSION}"
        )
    try:
        for name, module in modules.items():
            module.load_state_dict(_under(tensors, name))
    except RuntimeError as error:
        raise ValueError(f"the checkpoint {path} is of another run: {' '.join(str(error).split())}") from None
    _restore(optimizer, _under(tensors, "optimizer"))
    return dict(json.loads(about["notes"]))


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
