"""A model as a folder: weights in safetensors, everything else in model.json; never pickle."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as tensor_bytes

from prism_dml.models.embedder import Embedder
from prism_dml.models.preprocess import Preprocess

_FORMAT = "prism-dml model"
_VERSION = 1
_CARD = "model.json"


def save(model: Embedder, folder: str | Path) -> None:
    """Write a model into a folder, made if missing: model.json and the weights it names.

    A model that is there already is replaced in one instant: whenever the writing is cut short, the folder
    holds the old model whole or the new one. OSError if the folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Cloned: safetensors refuses tensors that share memory, or lie in channels_last order.
    state = {
        k: v.detach().cpu().clone(memory_format=torch.contiguous_format)
        for k, v in model.state_dict().items()
    }
    weights = tensor_bytes(state)
    checksum = hashlib.sha256(weights).hexdigest()
    # Named by content, so that the old card's weights stay until the new card is in place.
    path = folder / f"model-{checksum[:12]}.safetensors"
    card = {
        "format": _FORMAT,
        "format_version": _VERSION,
        "weights": path.name,
        "sha256": checksum,
        "config": model.config,
        "preprocessing": model.transform.as_dict(),
    }
    _write(path, weights)
    _write(folder / _CARD, (json.dumps(card, indent=2) + "\n").encode())
    for old in folder.glob("model-*.safetensors"):
        if old != path:
            old.unlink()


def load(folder: str | Path) -> Embedder:
    """The model that `save` wrote into folder or folder/model, as in a training run; on the CPU, eval mode.

    ValueError, one line, if there is none, or it is damaged, or written by a later version. Needs no network.
    """
    folder = Path(folder)
    folder = next((f for f in (folder, folder / "model") if (f / _CARD).is_file()), folder)
    card = _read_card(folder / _CARD)
    path = folder / card["weights"]
    try:
        weights = path.read_bytes()
    except OSError as error:
        raise ValueError(f"the weights {path} cannot be read: {error.strerror}") from None
    if hashlib.sha256(weights).hexdigest() != card["sha256"]:
        raise ValueError(f"the weights {path} are damaged: their checksum is not that of {_CARD}")
    try:
        model = Embedder(**card["config"])
        model.transform = Preprocess.from_dict(card["preprocessing"])
        model.load_state_dict(read_tensors(weights))
    except (TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder / _CARD} does not describe its weights: {reason}") from None
    return model.eval()


def _read_card(path: Path) -> dict[str, Any]:
    """The checked content of model.json."""
    if not path.is_file():
        raise ValueError(f"no model in {path.parent}: neither {_CARD} nor model/{_CARD} is there")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(card, dict) or card.get("format") != _FORMAT:
        raise ValueError(f"{path} is not the description of a Prism model")
    if card.get("format_version") != _VERSION:
        raise ValueError(
            f"{path} has format version {card.get('format_version')}; this version of Prism reads {_VERSION}"
        )
    kinds = {"weights": str, "sha256": str, "config": dict, "preprocessing": dict}
    wrong = [name for name, kind in kinds.items() if not isinstance(card.get(name), kind)]
    if wrong or Path(card["weights"]).name != card["weights"]:
        raise ValueError(f"{path} is damaged: {', '.join(wrong or ['weights'])} missing or malformed")
    return card


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
