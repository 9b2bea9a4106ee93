"""Files of tensors: whole or not there, and every flipped bit noticed."""

import resource
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import save_file

from prism_dml.files import replacing
from prism_dml.models.files import read_tensors, write_tensors

NOTES = {"step": "7", "what": 'Zahlen, ünd "mehr"'}


def tensors(seed=0):
    torch.manual_seed(seed)
    shared = torch.randn(2, 3)
    return {
        "a": shared,
        "also a": shared,
        "transposed": torch.randn(3, 2).T,
        "flags": torch.tensor([True, False]),
        "half": torch.randn(3).bfloat16(),
        "nothing": torch.zeros(0, 4),
        "scalar": torch.tensor(3),
    }


def test_round_trip(tmp_path):
    write_tensors(tmp_path / "t", "checkpoint", 2, tensors(), NOTES)
    found, about = read_tensors(tmp_path / "t", "checkpoint", 2)
    assert about.items() >= NOTES.items()
    assert found.keys() == tensors().keys()
    for key, value in tensors().items():
        assert found[key].dtype == value.dtype and torch.equal(found[key], value)
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_every_flipped_bit_and_every_cut_is_noticed(tmp_path):
    path = tmp_path / "t.safetensors"
    write_tensors(path, "checkpoint", 2, {"a": torch.arange(3.0)}, {"step": "7"})
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    padding = 8 + len(whole[8 : 8 + length].rstrip()), 8 + length  # blanks that mean nothing
    damaged = [whole[:end] for end in range(0, len(whole), 3)]
    for place in [*range(padding[0]), *range(padding[1], len(whole))]:
        for bit in (place % 8, (place + 3) % 8):
            damaged.append(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is damaged|has format version|is no checkpoint") as caught:
            read_tensors(path, "checkpoint", 2)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    path.write_bytes(whole)
    read_tensors(path, "checkpoint", 2)


@pytest.mark.parametrize(
    ("kind", "version", "message"),
    [
        ("checkpoint", 3, "has format version 2; this version of Prism reads 3"),
        ("checkpoint", 1, "has format version 2; this version of Prism reads 1"),
        ("model", 2, "is no model but a prism-dml checkpoint"),
    ],
)
def test_of_another_kind_or_version(tmp_path, kind, version, message):
    write_tensors(tmp_path / "t", "checkpoint", 2, tensors(), NOTES)
    with pytest.raises(ValueError, match=message):
        read_tensors(tmp_path / "t", kind, version)


def test_a_file_of_somebody_else(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "t")
    with pytest.raises(ValueError, match="is no model that Prism saved"):
        read_tensors(tmp_path / "t", "model", 1)


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    (tmp_path / "t").write_text("old")
    with pytest.raises(RuntimeError), replacing(tmp_path / "t") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert (tmp_path / "t").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


@contextmanager
def room_for(size):
    """No file may become larger, a limit of the operating system that hits a write as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("room", [0, 1 << 16])
def test_no_room_is_one_clear_line_and_leaves_the_old_file(tmp_path, room):
    path = tmp_path / "t"
    write_tensors(path, "checkpoint", 2, tensors(), NOTES)
    before = path.read_bytes()
    message = "cannot be written: .*; what was there before is whole"
    with pytest.raises(OSError, match=message) as caught, room_for(room):
        write_tensors(path, "checkpoint", 2, {"a": torch.zeros(100_000)}, {})
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_overwritten(tmp_path):
    (tmp_path / ".t.tmp").write_bytes(b"x" * 10**6)
    write_tensors(tmp_path / "t", "model", 1, tensors(), {})
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_a_link_that_leads_to_itself_is_told_of(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(OSError, match="loop cannot be written: ") as caught, replacing(loop):
        pass
    assert "\n" not in str(caught.value) and loop.is_symlink()
