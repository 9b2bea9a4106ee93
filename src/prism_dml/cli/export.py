"""``prism export``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from prism_dml.cli.output import print_json


def export(run: Path, *, format: Literal["onnx", "safetensors"], out: Path, json: bool = False) -> None:
    """Write a trained model as one file for other programs: ONNX or safetensors.

    onnx: images in, uint8 RGB (batch, 3, S, S), resized and cut out as the file's metadata say; embeddings of unit
    length out, (batch, D). The file is put in place once onnxruntime has given the embeddings that torch gives.
    Needs pip install 'prism-dml[onnx]'.

    safetensors: weights, architecture, preprocessing and a checksum; prism_dml.load and every command that takes a
    RUN read it. The names of the tensors are timm's after "backbone.", and head.weight.

    Args:
        run: Folder of a training run or of a model.
        format: onnx or safetensors.
        out: File to write, ending in .onnx or .safetensors; replaced if it exists.
        json: Print the result as JSON.

    Raises:
        ValueError: the model cannot be read or exported, or the file has another ending or is one of the run's.
        OSError: the file cannot be written.
    """
    if out.suffix.lower() != f".{format}":
        raise ValueError(f"--out must end in .{format}, not '{out.name}'")
    from prism_dml.data import refuse_overwriting
    from prism_dml.files import refuse_unwritable
    from prism_dml.models import load, save_as_file
    from prism_dml.training.result import run_files

    model = load(run)
    refuse_overwriting(out, run_files(run))
    refuse_unwritable(out)
    if format == "onnx":
        from prism_dml.models.export import export_onnx

        export_onnx(model, out)
    else:
        save_as_file(model, out)
    size, dim = model.transform.image_size, model.config["embedding_dim"]
    if json:
        print_json({"out": str(out), "format": format, "image_size": size, "embedding_dim": dim})
    else:
        print(f"{out}: images of {size} x {size} pixels to embeddings of {dim} numbers")
