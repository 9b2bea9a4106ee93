"""Stanford Online Products as it is published: two lists beside folders of images."""

from __future__ import annotations

from pathlib import Path

from prism_dml.data.table import FileImages, ImageTable

LISTS = {"train": "Ebay_train.txt", "test": "Ebay_test.txt"}
"""The list of each split; the splits share no class."""


def is_products(root: Path) -> bool:
    """Whether a folder is laid out like Stanford Online Products."""
    return all((root / name).is_file() for name in LISTS.values())


def read_products(root: Path) -> ImageTable:
    """Images of Ebay_train.txt, split "train", and of Ebay_test.txt, split "test".

    Raises:
        ValueError: a list is damaged.

    Source: Oh Song et al., "Deep Metric Learning via Lifted Structured Feature Embedding", CVPR 2016.
    """
    names: list[str] = []
    labels: list[str] = []
    splits: list[str] = []
    for split, name in LISTS.items():
        lines = (root / name).read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(
            lines[1:], start=2
        ):  # the first is image_id class_id super_class_id path
            fields = line.split(maxsplit=3)
            if len(fields) == 4:
                labels.append(fields[1])
                names.append(fields[3].strip())
                splits.append(split)
            elif fields:
                raise ValueError(f"{root / name}, line {number}: expected 4 fields, found {len(fields)}")
    if not names:
        raise ValueError(f"{root / LISTS['train']}: the list is empty")
    return ImageTable.from_names(FileImages(root, names), names, labels, splits=splits)
