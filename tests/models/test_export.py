"""Models as ONNX files, run by onnxruntime."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from prism_dml.models import Embedder, Preprocess, export

OPTIONS = {"widths": [8, 8]}


def trained(backbone="small", size=16):
    """A model whose batch statistics have moved, with a preprocessing that is not symmetric in the channels."""
    options = OPTIONS if backbone == "small" else {}
    model = Embedder(backbone, 6, image_size=size, backbone_options=options)
    model.transform = Preprocess(size, size + 4, (0.1, 0.4, 0.6), (0.2, 0.3, 0.25))
    model(torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0)))
    return model.eval()


def opened(path):
    runtime = pytest.importorskip("onnxruntime", reason="pip install 'prism-dml[onnx]'")
    return runtime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.fixture
def needs_onnx():
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason="pip install 'prism-dml[onnx]'")


@pytest.mark.parametrize(("backbone", "size"), [("small", 16), ("resnet10t", 32), ("convnext_atto", 32)])
def test_onnx_gives_the_embeddings_of_pictures(needs_onnx, tmp_path, backbone, size):
    """From a picture, prepared as the metadata say without any code of ours, to the embedding."""
    model, path = trained(backbone, size), tmp_path / "new" / "m.onnx"
    export.export_onnx(model, path)
    session = opened(path)
    metadata = session.get_modelmeta().custom_metadata_map
    look = json.loads(metadata["preprocessing"])
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(5)]
    pixels = [F.resize(F.pil_to_tensor(p), [look["resize_short_side"]], antialias=True) for p in pictures]
    cut = np.stack([F.center_crop(p, [look["center_crop"]]).numpy() for p in pixels])
    with torch.no_grad():
        expected = model(torch.stack([model.transform(picture) for picture in pictures])).numpy()
    for count in (1, 5):
        (found,) = session.run(["embeddings"], {"images": cut[:count]})
        # One level of grey of 256: resizing an array, and resizing a picture, round differently.
        assert np.allclose(found, expected[:count], atol=0.02)
        assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    plain = torch.from_numpy(cut).float() / 255
    mean, std = (torch.tensor(look[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        assert np.allclose(found, model((plain - mean) / std).numpy(), atol=1e-5)
    assert json.loads(metadata["config"]) == model.config
    assert [path.name for path in path.parent.iterdir()] == ["m.onnx"]


def test_what_onnxruntime_gets_wrong_is_not_put_in_place(needs_onnx, tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")

    class Traced(torch.nn.Module):
        """Tracing writes the size of the batch down as a constant."""

        def forward(self, images):
            return images.new_ones(len(images.tolist()), 1) * images.mean(dim=(1, 2, 3)).view(-1, 1)

    model = trained()
    model.backbone, model.head = Traced(), torch.nn.Linear(1, 6, bias=False)
    with pytest.raises(ValueError, match='backbone "small" cannot be exported to ONNX: ') as caught:
        export.export_onnx(model.eval(), path)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(export, "TOLERANCE", 0.0)
    with pytest.raises(ValueError, match="away from torch"):
        export.export_onnx(trained(), path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_the_packages(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=r"pip install 'prism-dml\[onnx\]'"):
        export.export_onnx(trained(), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
