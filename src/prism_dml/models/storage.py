"""A model as a folder or as one file: weights in safetensors, everything else in JSON; never pickle."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import save as tensor_bytes
from torch import Tensor

from prism_dml.files import replacing
from prism_dml.models.embedder import Embedder
from prism_dml.models.files import CHECKPOINT, read_tensors, tensors_checksum, write_tensors
from prism_dml.models.preprocess import Preprocess

_FORMAT = "prism-dml model"
_VERSIONS = (1, 2)  # the first has no checksum of the card itself
_FILE_VERSION = 1
_CARD = "model.json"
_CONFIG = {"backbone", "embedding_dim", "image_size", "resize_ratio", "backbone_options"}  # of `Embedder`


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
    digest = hashlib.sha256(weights).hexdigest()
    # Named by content, so that the old card's weights stay until the new card is in place.
    path = folder / f"model-{digest[:12]}.safetensors"
    card = {
        "format": _FORMAT,
        "format_version": _VERSIONS[-1],
        "weights": path.name,
        "sha256": digest,
        "config": model.config,
        "preprocessing": model.transform.as_dict(),
    }
    card["checksum"] = _checksum(card)
    _write(path, weights)
    _write(folder / _CARD, (json.dumps(card, indent=2) + "\n").encode())
    for old in folder.glob("model-*.safetensors"):
        if old != path:
            old.unlink()


def save_as_file(model: Embedder, path: str | Path) -> None:
    """Write a model into one file that `load` reads; replaced in one instant if it is there, its folder is made.

    What follows "backbone." in the names of its tensors are timm's names. OSError if it cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    description = {"config": model.config, "preprocessing": model.transform.as_dict()}
    notes = {name: json.dumps(value) for name, value in description.items()}
    write_tensors(path, "model", _FILE_VERSION, model.state_dict(), notes)


def load(path: str | Path) -> Embedder:
    """The model in a training run's folder, in a folder that `save` wrote or in a file that `save_as_file` wrote.

    On the CPU, in eval mode. ValueError, one line, if there is none, or it is damaged, or written by a later
    version. Needs no network.
    """
    path = Path(path)
    if path.is_file():
        weights, notes = read_tensors(path, "model", _FILE_VERSION)
        return _build(path, json.loads(notes["config"]), json.loads(notes["preprocessing"]), weights)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    folder = next((f for f in (path, path / "model") if (f / _CARD).is_file()), path)
    card = _read_card(folder / _CARD)
    file = folder / card["weights"]
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f"the weights {file} cannot be read: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest() != card["sha256"]:
        raise ValueError(f"the weights {file} are damaged: their checksum is not that of {_CARD}")
    try:
        weights = tensors_of(content)
    except SafetensorError as error:
        raise ValueError(f"{folder / _CARD} does not describe its weights: {error}") from None
    return _build(folder / _CARD, card["config"], card["preprocessing"], weights)


def model_checksum(model: Embedder) -> str:
    """SHA-256 of all that embeddings depend on: weights, architecture, preprocessing."""
    about = {"config": model.config, "preprocessing": model.transform.as_dict()}
    notes = {name: json.dumps(value, sort_keys=True) for name, value in about.items()}
    plain = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    return f"sha256:{tensors_checksum(plain, notes)}"


def _build(
    described: Path, config: dict[str, Any], preprocessing: dict[str, Any], weights: dict[str, Tensor]
) -> Embedder:
    if unknown := sorted(config.keys() - _CONFIG):
        raise ValueError(f"{described} does not describe its weights: unknown {unknown[0]}")
    try:
        model = Embedder(**config)
        model.transform = Preprocess.from_dict(preprocessing)
        model.load_state_dict(weights)
    except (TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{described} does not describe its weights: {reason}") from None
    return model.eval()


def _read_card(path: Path) -> dict[str, Any]:
    """The checked content of model.json."""
    if not path.is_file():
        if (path.parent / CHECKPOINT).is_file():
            raise ValueError(
                f"there is no model in {path.parent} yet: its training is not finished; "
                "if it was interrupted, go on with --resume"
            )
        raise ValueError(f"there is no model in {path.parent}: neither {_CARD} nor model/{_CARD} is there")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(card, dict) or card.get("format") != _FORMAT:
        raise ValueError(f"{path} is not the description of a Prism model")
    version = card.get("format_version")
    if version not in _VERSIONS:
        raise ValueError(
            f"{path} has format version {version}; this version of Prism reads up to {_VERSIONS[-1]}"
        )
    if version > 1 and card.pop("checksum", None) != _checksum(card):
        raise ValueError(f"{path} is damaged: its checksum is not that of its content")
    kinds = {"weights": str, "sha256": str, "config": dict, "preprocessing": dict}
    wrong = [name for name, kind in kinds.items() if not isinstance(card.get(name), kind)]
    if wrong or Path(card["weights"]).name != card["weights"]:
        raise ValueError(f"{path} is damaged: {', '.join(wrong or ['weights'])} missing or malformed")
    return card


def _checksum(card: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
