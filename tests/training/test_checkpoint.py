from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from prism_dml.models import files
from prism_dml.models.files import CHECKPOINT
from prism_dml.training.checkpoint import load_checkpoint, save_checkpoint


def parts(seed: int, kind=torch.optim.AdamW) -> tuple[dict[str, nn.Module], torch.optim.Optimizer]:
    """Two modules that share one, and an optimiser that has made a step."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2).to(memory_format=torch.contiguous_format)
    )
    optimizer = kind(model.parameters(), lr=0.1)
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    return {"model": model, "part": model[0]}, optimizer


def write(folder: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer, notes: dict) -> None:
    save_checkpoint(folder, {name: module.state_dict() for name, module in modules.items()}, optimizer, notes)


def flat(modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    state = optimizer.state_dict()["state"]
    return [
        *(v for module in modules.values() for v in module.state_dict().values()),
        *(torch.as_tensor(v) for number in sorted(state) for _, v in sorted(state[number].items())),
    ]


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_round_trip(kind, tmp_path: Path) -> None:
    notes = {"step": 7, "best": -float("inf"), "settings": {"lr": 1e-3, "weights": None}}
    saved, other = parts(0, kind), parts(1, kind)
    write(tmp_path, *saved, notes)
    assert load_checkpoint(tmp_path, *other) == notes
    for one, two in zip(flat(*saved), flat(*other), strict=True):
        assert torch.equal(one, two) and one.dtype == two.dtype
    for modules, optimizer in (saved, other):
        optimizer.zero_grad()
        modules["model"](torch.ones(5, 3) * torch.arange(5)[:, None]).square().sum().backward()
        optimizer.step()
    assert all(torch.equal(one, two) for one, two in zip(flat(*saved), flat(*other), strict=True))


@pytest.mark.parametrize("moment", ["save_file", "replace"])
def test_writing_cut_short_leaves_the_old_one_whole(moment, tmp_path: Path, monkeypatch) -> None:
    write(tmp_path, *parts(0), {"step": 1})

    def fail(*arguments):
        if moment == "save_file":
            Path(arguments[1]).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(*((files, "save_file", fail) if moment == "save_file" else (Path, "replace", fail)))
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path, *parts(1), {"step": 2})
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == [tmp_path / CHECKPOINT], "nothing is left lying about"
    assert load_checkpoint(tmp_path, *parts(2)) == {"step": 1}


@pytest.mark.parametrize("metadata", [{"version": "1", "notes": "{}"}, {"version": "3"}])
def test_another_version(metadata, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / CHECKPOINT, metadata)
    with pytest.raises(ValueError, match="format version (1|3); this version of Prism reads 2"):
        load_checkpoint(tmp_path, *parts(0))


def test_of_another_model(tmp_path: Path) -> None:
    write(tmp_path, *parts(0), {})
    other = nn.Linear(3, 5)
    with pytest.raises(ValueError, match="of another run") as error:
        load_checkpoint(tmp_path, {"model": other}, torch.optim.Adam(other.parameters()))
    assert "\n" not in str(error.value)


def test_what_a_check_refuses_is_not_restored(tmp_path: Path) -> None:
    write(tmp_path, *parts(0), {"step": 1})
    modules, optimizer = parts(1)
    before = [value.clone() for value in flat(modules, optimizer)]

    def refuse(notes: dict) -> None:
        raise ValueError(f"not at step {notes['step']}")

    with pytest.raises(ValueError, match="not at step 1"):
        load_checkpoint(tmp_path, modules, optimizer, refuse)
    assert all(torch.equal(a, b) for a, b in zip(before, flat(modules, optimizer), strict=True))


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no checkpoint"):
        load_checkpoint(tmp_path, *parts(0))
