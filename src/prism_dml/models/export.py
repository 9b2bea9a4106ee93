"""A model as an ONNX file, for programs without torch."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import prism_dml
from prism_dml.files import replacing
from prism_dml.models.embedder import Embedder

TOLERANCE = 1e-4
"""Of a number of the embedding, between onnxruntime and torch."""
_OPSET = 17


class _FromPixels(nn.Module):
    """Pixels (B, 3, S, S) uint8 -> unit embeddings (B, D): the normalisation and the network in one."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Embedder) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(model.transform.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(model.transform.std).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        embeddings: Tensor = self.model((images.float() / 255 - self.mean) / self.std)
        return embeddings


def export_onnx(model: Embedder, path: str | Path) -> None:
    """Write a model as ONNX, once onnxruntime has been seen to give the same embeddings.

    Input `images`, uint8 (batch, 3, S, S): RGB pixels, resized and cut out; the file normalises them itself. Output
    `embeddings`, float32 (batch, D), of unit length. The file's metadata say how to resize, and all else.

    Args:
        model: on the CPU, in eval mode.
        path: the file, replaced in one instant if it exists; its folder is made.

    Raises:
        ValueError: onnx or onnxruntime is not installed, or the backbone cannot be exported.
        OSError: the file cannot be written.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise ValueError(f"ONNX needs two more packages, pip install 'prism-dml[onnx]': {error}") from None
    path = Path(path)
    network, backbone = _FromPixels(model).eval(), model.config["backbone"]
    graph = io.BytesIO()
    try:
        with warnings.catch_warnings():
            # The exporter is called old, and tracing uncertain: the one is in every torch that Prism admits and needs
            # no further package; what comes of the other is seen below.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network,
                (_pixels(model, 2),),
                graph,  # type: ignore[arg-type]  # the annotation knows of file names only
                input_names=["images"],
                output_names=["embeddings"],
                dynamic_axes={"images": {0: "batch"}, "embeddings": {0: "batch"}},
                opset_version=_OPSET,
                dynamo=False,
            )
        described = onnx.load_model_from_string(graph.getvalue())
        onnx.helper.set_model_props(described, _description(model))
        content = described.SerializeToString()
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        _check(network, session, model)
    except Exception as error:  # the three packages' errors have no kind in common
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f'the backbone "{backbone}" cannot be exported to ONNX: {reason}') from error
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _pixels(model: Embedder, count: int) -> Tensor:
    """The same random images (count, 3, S, S) uint8 each time."""
    size = model.transform.image_size
    generator = torch.Generator().manual_seed(count)
    return torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def _check(network: nn.Module, session: Any, model: Embedder) -> None:
    """RuntimeError if onnxruntime's embeddings are not torch's, for batches of other sizes than the traced one too."""
    for count in (1, 2, 3):
        images = _pixels(model, count)
        (found,) = session.run(["embeddings"], {"images": images.numpy()})
        difference = (torch.from_numpy(found) - network(images)).abs().max().item()
        if not difference <= TOLERANCE:
            raise RuntimeError(f"for {count} images onnxruntime is {difference:.2g} away from torch")


def _description(model: Embedder) -> dict[str, str]:
    """What whoever finds the file has to know."""
    look = model.transform
    preprocessing = {
        "input": f"uint8 (batch, 3, {look.image_size}, {look.image_size}), RGB",
        "resize_short_side": look.resize_size,
        "interpolation": "bilinear, antialias",
        "center_crop": look.image_size,
        "in_the_graph": "divide by 255, subtract mean, divide by std",
        "mean": look.mean,
        "std": look.std,
    }
    return {
        "producer": f"prism-dml {prism_dml.__version__}",
        "output": f"float32 (batch, {model.config['embedding_dim']}), unit length: compare by dot product",
        "preprocessing": json.dumps(preprocessing),
        "config": json.dumps(model.config),
    }
