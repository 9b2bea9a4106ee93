import json

import pytest
import torch

from prism_dml import load


def test_safetensors_is_a_run_of_its_own(prism, run_folder, image_folder, tmp_path):
    out = tmp_path / "new" / "model.safetensors"
    status, shown, _ = prism("export", run_folder, "--format", "safetensors", "--out", out)
    assert (status, shown) == (0, f"{out}: images of 16 x 16 pixels to embeddings of 6 numbers\n")
    model, copy = load(run_folder), load(out)
    images = torch.randn(2, 3, 16, 16)
    assert copy.transform == model.transform and not copy.training
    assert torch.equal(copy(images), model(images))
    status, _, error = prism("embed", out, image_folder, "--out", tmp_path / "e.npz")
    assert status == 0, error


def test_onnx(prism, run_folder, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="pip install 'prism-dml[onnx]'")
    pytest.importorskip("onnx", reason="pip install 'prism-dml[onnx]'")
    out = tmp_path / "model.onnx"
    status, shown, error = prism("export", run_folder, "--format", "onnx", "--out", out, "--json")
    assert status == 0, error
    assert json.loads(shown) == {"out": str(out), "format": "onnx", "image_size": 16, "embedding_dim": 6}
    pixels = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    (found,) = runtime.InferenceSession(out).run(None, {"images": pixels.numpy()})
    with torch.no_grad():
        expected = load(run_folder)((pixels / 255 - 0.5) / 0.25)
    assert torch.allclose(torch.from_numpy(found), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("run", "options", "message"),
    [
        (None, ("--format", "onnx", "--out", "m.pt"), "--out must end in .onnx, not 'm.pt'"),
        (None, ("--format", "safetensors", "--out", "m.onnx"), "--out must end in .safetensors"),
        ("nothing", ("--format", "onnx", "--out", "m.onnx"), "nothing: no such file or folder"),
        (None, ("--format", "pickle", "--out", "m.pickle"), "--format: expected one of onnx, safetensors"),
    ],
)
def test_mistakes_are_one_clear_line(prism, run_folder, tmp_path, monkeypatch, run, options, message):
    monkeypatch.chdir(tmp_path)
    status, _, error = prism("export", run or run_folder, *options)
    assert status == 2 and message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
