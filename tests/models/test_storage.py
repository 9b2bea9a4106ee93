"""Models written and read again, whole, damaged and half-written."""

import hashlib
import json
import os

import pytest
import torch

from prism_dml.models import Embedder, load, save, save_as_file
from prism_dml.models.files import CHECKPOINT


def tiny(seed=0, backbone="small"):
    options = {"widths": (8, 8)} if backbone == "small" else {}
    model = Embedder(backbone, 6, image_size=32, resize_ratio=1.125, backbone_options=options, seed=seed)
    model(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))  # moves the batch statistics
    return model


def same(first, second):
    return all(torch.equal(v, second.state_dict()[k]) for k, v in first.state_dict().items())


@pytest.mark.parametrize("backbone", ["small", "resnet10t"])
def test_round_trip(tmp_path, backbone):
    model = tiny(backbone=backbone)
    save(model, tmp_path / "run" / "model")
    images = torch.randn(2, 3, 32, 32)
    for folder in (tmp_path / "run" / "model", str(tmp_path / "run")):
        loaded = load(folder)
        assert not loaded.training and same(model, loaded)
        assert loaded.transform == model.transform
        assert loaded.config == json.loads(json.dumps(model.config))
        assert torch.equal(loaded(images), model.eval()(images))


def test_the_cards_preprocessing_is_used(tmp_path):
    save(tiny(), tmp_path)
    look = json.loads((tmp_path / "model.json").read_text())["preprocessing"]
    card_with(preprocessing=look | {"mean": [0.1, 0.2, 0.3]})(tmp_path)
    assert load(tmp_path).transform.mean == (0.1, 0.2, 0.3)


def test_a_model_of_the_first_version_is_read(tmp_path):
    save(tiny(), tmp_path)
    card = json.loads((tmp_path / "model.json").read_text())
    del card["checksum"]
    (tmp_path / "model.json").write_text(json.dumps(card | {"format_version": 1}))
    assert same(load(tmp_path), tiny())


@pytest.mark.parametrize("backbone", ["small", "resnet10t"])
def test_one_file(tmp_path, backbone):
    model = tiny(backbone=backbone)
    save_as_file(model, tmp_path / "new" / "m.safetensors")
    loaded = load(tmp_path / "new" / "m.safetensors")
    assert not loaded.training and same(model, loaded)
    assert loaded.transform == model.transform
    assert loaded.config == json.loads(json.dumps(model.config))


def test_a_file_that_is_no_model(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(b"junk")
    with pytest.raises(ValueError, match="the model .*m.safetensors is damaged"):
        load(tmp_path / "m.safetensors")
    (tmp_path / "m.onnx").write_bytes(b"another program's")
    with pytest.raises(ValueError, match="m.onnx is no model that Prism saved$"):
        load(tmp_path / "m.onnx")


def test_every_flipped_bit_of_the_card_is_noticed(tmp_path):
    """But for blanks: a card that says the same is the same card."""
    save(tiny(), tmp_path)
    path = tmp_path / "model.json"
    whole = path.read_bytes()
    said = json.loads(whole)
    refused = 0
    for place in range(len(whole)):
        content = whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
        path.write_bytes(content)
        try:
            load(tmp_path)
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error) and str(tmp_path) in str(error)
        else:
            assert json.loads(content) == said
    assert refused > 0.8 * len(whole)


def test_replacing_leaves_only_the_new_model(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    save(tiny(0), tmp_path)
    save(tiny(1), tmp_path)
    save(tiny(1), tmp_path)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert len(names) == 3 and names[1:] == ["model.json", "notes.txt"]
    assert names[0].startswith("model-") and names[0].endswith(".safetensors")
    assert same(load(tmp_path), tiny(1))


@pytest.mark.parametrize("failing", [1, 2])
def test_a_save_cut_short_leaves_the_old_model(tmp_path, monkeypatch, failing):
    save(tiny(0), tmp_path)
    calls = []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) == failing:
            raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="disk full"):
        save(tiny(1), tmp_path)
    assert same(load(tmp_path), tiny(0))
    assert not list(tmp_path.glob(".*"))


def damage_weights(folder):
    (path,) = folder.glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def lose_weights(folder):
    (path,) = folder.glob("*.safetensors")
    path.unlink()


def card_with(**changes):
    def change(folder):
        card = json.loads((folder / "model.json").read_text())
        card |= changes
        card.pop("checksum")
        card["checksum"] = hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()
        (folder / "model.json").write_text(json.dumps(card))

    return change


def edit_by_hand(folder):
    path = folder / "model.json"
    path.write_text(path.read_text().replace("0.5", "0.4"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damage_weights, "are damaged"),
        (lose_weights, "cannot be read"),
        (lambda f: (f / "model.json").unlink(), "no model in"),
        (lambda f: (f / "model.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "model.json").write_bytes(b"\xff\xfe"), "cannot be read"),
        (lambda f: (f / "model.json").write_text("[]"), "not the description"),
        (edit_by_hand, "its checksum is not that of its content"),
        (card_with(format="other"), "not the description"),
        (card_with(format_version=99), "format version 99"),
        (card_with(sha256=None), "sha256 missing"),
        (card_with(weights="../x.safetensors"), "weights missing or malformed"),
        (card_with(config={"backbone": "nothing"}), "unknown backbone"),
        (card_with(config={"colour": 1}), "does not describe its weights"),
        (card_with(config={"embedding_dim": 5}), "does not describe its weights"),
        (card_with(preprocessing={}), "bad preprocessing"),
    ],
)
def test_damage_is_one_clear_line(tmp_path, change, message):
    save(tiny(), tmp_path)
    change(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_no_folder(tmp_path):
    with pytest.raises(ValueError, match="missing: no such file or folder"):
        load(tmp_path / "missing")


def test_a_run_that_was_interrupted(tmp_path):
    (tmp_path / CHECKPOINT).touch()
    with pytest.raises(ValueError, match="no model in .* yet: .* interrupted, go on with --resume"):
        load(tmp_path)
    save(tiny(), tmp_path / "model")
    assert load(tmp_path)


def test_checksum_covers_what_is_no_safetensors_file(tmp_path):
    """A card that vouches for junk: the weights' own format is checked too."""
    save(tiny(), tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(b"junk")
    card_with(sha256=hashlib.sha256(b"junk").hexdigest())(tmp_path)
    with pytest.raises(ValueError, match="does not describe its weights"):
        load(tmp_path)
