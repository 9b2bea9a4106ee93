"""CUB-200-2011 as it is published: lists of images and classes beside a folder of images."""

from __future__ import annotations

from pathlib import Path

from prism_dml.data.table import FileImages, ImageTable

IMAGES, LABELS, CLASSES = "images.txt", "image_class_labels.txt", "classes.txt"


def is_cub(root: Path) -> bool:
    """Whether a folder is laid out like CUB-200-2011."""
    return (root / IMAGES).is_file() and (root / LABELS).is_file()


def read_cub(root: Path) -> ImageTable:
    """Images of CUB_200_2011: the first half of the classes is the split "train", the others are "test".

    Raises:
        ValueError: a list is missing, damaged, or does not fit the others.

    Source: Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset", 2011; the split is that of Oh Song et al., CVPR 2016.
    """
    classes = _numbered(root / CLASSES)
    files = _numbered(root / IMAGES)
    class_of = _numbered(root / LABELS)
    order = sorted(classes, key=int)
    train = set(order[: len(order) // 2])
    for image in files:
        if class_of.get(image) not in classes:
            raise ValueError(f"{root / LABELS}: image {image} has no class that {CLASSES} names")
    numbers = [class_of[image] for image in files]
    names = [f"images/{file}" for file in files.values()]
    return ImageTable.from_names(
        FileImages(root, names),
        names,
        [classes[number] for number in numbers],
        splits=["train" if number in train else "test" for number in numbers],
    )


def _numbered(file: Path) -> dict[str, str]:
    """The lines `number text` of a file."""
    if not file.is_file():
        raise ValueError(f"{file}: the file is missing; it is a part of CUB-200-2011")
    pairs: dict[str, str] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        key, _, text = line.strip().partition(" ")
        if line.strip():
            if not key.isdecimal() or not text:
                raise ValueError(
                    f"{file}, line {number}: expected a number and a name, not {line.strip()[:60]!r}"
                )
            pairs[key] = text.strip()
    if not pairs:
        raise ValueError(f"{file}: the file is empty")
    return pairs
