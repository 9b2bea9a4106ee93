"""docs/data.md keeps its word: its recipe runs on stand-ins of what is published, and what it writes can be read."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torchvision
from PIL import Image

from prism_dml.data import read_table

PAGE = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")


def photo(file: str, size: tuple[int, int], mode: str = "RGB") -> None:
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(file)


def test_the_recipe_makes_what_the_comparisons_read(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for part, alphabet in (("background", "Latin"), ("evaluation", "Tifinagh")):
        for number in range(2):
            photo(f"images_{part}/{alphabet}/character0{number}/a.png", (105, 105), "1")
    for part, product in (("train", "Fruit/Apple/Pink"), ("val", "Fruit/Kiwi"), ("test", "Fruit/Kiwi")):
        photo(f"GroceryStoreDataset/dataset/{part}/{product}/{part}.jpg", (100, 160))
    torch.save({"worse_label": np.array([1, 0, 1])}, "CIFAR-10_human.pt")

    def cifar(root: str, train: bool, download: bool) -> SimpleNamespace:
        count = 3 if train else 2
        pixels = np.zeros((count, 32, 32, 3), np.uint8)
        return SimpleNamespace(data=pixels, targets=[0, 0, 1][:count], classes=["airplane", "automobile"])

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", cifar)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(compile(code, "data.md", "exec"), {})

    omniglot = read_table(Path("omniglot.parquet"))
    assert omniglot.split("train").classes == ["Latin/character00", "Latin/character01"]
    assert omniglot.split("test").classes == ["Tifinagh/character00", "Tifinagh/character01"]
    grocery = read_table(Path("grocery.parquet"))
    assert grocery.split("train").classes == ["Pink"] and len(grocery.split("test")) == 2
    cifar10n = read_table(Path("cifar10n_worse.parquet"))
    assert cifar10n.split("train").is_noisy.tolist() == [True, False, False]
    assert cifar10n.split("test").is_noisy.tolist() == [False, False]
