"""Nothing that Prism reads can make it run code: files that would, if anything in them were unpickled or called."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from prism_dml.benchmark import load_protocol
from prism_dml.cli.main import main
from prism_dml.data import read_corrections, read_table
from prism_dml.data.embeddings import read_embeddings
from prism_dml.models import Embedder, load, save
from prism_dml.models.files import CHECKPOINT
from prism_dml.models.storage import _checksum
from prism_dml.retrieval import load_index
from prism_dml.training.checkpoint import load_checkpoint


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self):
        return Path.touch, (self.flag,)


@pytest.fixture
def flag(tmp_path: Path) -> Path:
    """What a bomb leaves; it goes off if it is allowed to."""
    flag = tmp_path / "code was run"
    pickle.loads(pickle.dumps(Bomb(flag)))
    assert flag.exists(), "else the tests prove nothing"
    flag.unlink()
    return flag


def resume(file: Path) -> None:
    network = torch.nn.Linear(2, 2)
    load_checkpoint(file.parent, {"model": network}, torch.optim.Adam(network.parameters()))


def with_weights(file: Path) -> None:
    Embedder("resnet10t", 4, image_size=32, weights=file)


READERS = [
    (CHECKPOINT, resume),
    ("m.safetensors", load),
    ("model.json", lambda file: load(file.parent)),
    ("index.json", lambda file: load_index(file.parent)),
    ("corrections.json", read_corrections),
    ("e.npz", read_embeddings),
    ("e.parquet", read_embeddings),
    ("d.parquet", read_table),
    ("d.csv", read_table),
    ("p.yaml", lambda file: load_protocol(str(file))),
    ("weights.pth", with_weights),
    ("weights.safetensors", with_weights),
]


@pytest.mark.parametrize(("name", "read"), READERS, ids=[name for name, _ in READERS])
@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_pickles_are_refused_by_every_reader(name, read, kind, flag: Path, tmp_path: Path) -> None:
    file = tmp_path / name
    content = {"state_dict": {"a": Bomb(flag)}}
    if kind == "torch":
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError) as refusal:
        read(file)
    assert not flag.exists() and "\n" not in str(refusal.value) and str(tmp_path) in str(refusal.value)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02."])
def test_what_is_no_file_of_weights_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"weights\.pth is not a file of weights, or holds more than tensors$"
    ):
        with_weights(file)


def test_arrays_of_objects_are_refused(flag: Path, tmp_path: Path) -> None:
    for name in ("embeddings", "labels", "paths"):
        arrays = {"embeddings": np.ones((1, 2)), "labels": np.array(["a"]), "paths": np.array(["p"])}
        np.savez(tmp_path / "e.npz", **(arrays | {name: np.array([Bomb(flag)], dtype=object)}))
        with pytest.raises(ValueError, match="not a readable .npz file"):
            read_embeddings(tmp_path / "e.npz")
    assert not flag.exists()


def test_tags_of_yaml_are_refused(flag: Path, tmp_path: Path, capsys) -> None:
    file = tmp_path / "x.yaml"
    for tag in ("python/object/apply:pathlib.Path.touch", "python/object/new:pathlib.Path"):
        file.write_text(f'steps: !!{tag}\n  - "{flag}"\n', encoding="utf-8")
        with pytest.raises(ValueError, match="not YAML"):
            load_protocol(str(file))
        assert main(["train", "data", "--config", str(file)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not flag.exists()


def test_a_model_names_no_other_file_to_load(flag: Path, tmp_path: Path) -> None:
    """Its card is as untrusted as its weights, and needs no network."""
    bomb = tmp_path / "weights.pth"
    torch.save({"state_dict": {"a": Bomb(flag)}}, bomb)
    save(Embedder("small", 4, image_size=32, backbone_options={"widths": [8]}), tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    card = json.loads(path.read_text())
    del card["checksum"]
    for change, message in [
        ({"weights": str(bomb)}, "does not describe its weights: unknown weights"),
        ({"pretrained": True}, "does not describe its weights: unknown pretrained"),
        (
            {"backbone_options": {"checkpoint_path": str(bomb)}},
            "checkpoint_path is no argument for a backbone",
        ),
        (
            {"backbone_options": {"pretrained_cfg_overlay": {"file": str(bomb)}}},
            "pretrained_cfg_overlay is no",
        ),
    ]:
        changed = card | {"config": card["config"] | {"backbone": "resnet10t"} | change}
        path.write_text(json.dumps(changed | {"checksum": _checksum(changed)}))
        with pytest.raises(ValueError, match=message) as refusal:
            load(tmp_path / "model")
        assert not flag.exists() and "\n" not in str(refusal.value)
