"""Files of tensors that are replaced whole and know whether they are damaged; never pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from prism_dml.files import replacing

CHECKPOINT = "checkpoint.safetensors"
"""In a run's folder until it is finished: where training stands."""


def write_tensors(
    path: Path, kind: str, version: int, tensors: Mapping[str, Tensor], notes: Mapping[str, str]
) -> None:
    """Write tensors and notes into one safetensors file, with a checksum over both.

    Whenever the writing is cut short, the old file is there whole or the new one.

    Args:
        path: the file; replaced if it exists.
        kind: what it is, such as "checkpoint".
        version: of the format.
        tensors: of any device and layout.
        notes: text.

    Raises:
        OSError: the file cannot be written, for instance because the disk is full.
    """
    # Cloned: safetensors refuses tensors that share memory (a bank known by two names) or are not contiguous.
    plain = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in tensors.items()
    }
    about = {**notes, "format": f"prism-dml {kind}", "version": str(version)}
    with replacing(path) as temporary:
        try:
            save_file(plain, temporary, about | {"sha256": tensors_checksum(plain, about)})
        except SafetensorError as error:  # its word for a full disk, among others
            raise OSError(_one_line(error)) from error


def read_tensors(path: Path, kind: str, version: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, on the CPU, and the notes that `write_tensors` wrote.

    Raises:
        ValueError: the file is of another kind, format or version, or a single bit of it is not as it was written.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = dict(file.metadata() or {})
            written, named = about.get("version"), about.get("format")
            if named is None and written is None:
                raise ValueError(f"{path} is no {kind} that Prism saved")
            if named not in (None, f"prism-dml {kind}"):  # the first version gave no name
                raise ValueError(f"{path} is no {kind} but a {named}")
            if written != str(version):
                raise ValueError(
                    f"the {kind} {path} has format version {written}; this version of Prism reads {version}"
                )
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        if isinstance(error, SafetensorError) and path.suffix.lower() != ".safetensors":
            raise ValueError(f"{path} is no {kind} that Prism saved") from None
        raise ValueError(f"the {kind} {path} is damaged: {_one_line(error)}") from None
    if about.pop("sha256", None) != tensors_checksum(tensors, about):
        raise ValueError(f"the {kind} {path} is damaged: its checksum is not that of its content")
    return tensors, about


def tensors_checksum(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """SHA-256 of everything that the file says; the order in which it says it does not matter."""
    digest = hashlib.sha256(json.dumps(sorted(about.items())).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _one_line(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split())
