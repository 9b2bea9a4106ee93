"""Cars-196 as it is published: two folders of images and a development kit of MATLAB files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prism_dml.data.table import FileImages, ImageTable

DEVKIT = "devkit"
TRAIN_LIST, TEST_LIST, META = "cars_train_annos.mat", "cars_test_annos_withlabels.mat", "cars_meta.mat"


def is_cars(root: Path) -> bool:
    """Whether a folder is laid out like Cars-196."""
    return (root / DEVKIT / TRAIN_LIST).is_file()


def read_cars(root: Path) -> ImageTable:
    """Images of cars_train/ and cars_test/ pooled: the first half of the classes is "train", the others are "test".

    The labels of cars_test/ are in cars_test_annos_withlabels.mat, in `root` or in its devkit/.

    Raises:
        ValueError: a file is missing or not as expected.

    Source: Krause et al., "3D Object Representations for Fine-Grained Categorization", 3dRR 2013; the split is that of
    Oh Song et al., CVPR 2016.
    """
    devkit = root / DEVKIT
    test_list = next(
        (file for file in (root / TEST_LIST, devkit / TEST_LIST) if file.is_file()), devkit / TEST_LIST
    )
    classes = [str(name) for name in _variable(devkit / META, "class_names")]
    names: list[str] = []
    numbers: list[int] = []
    for folder, file in (("cars_train", devkit / TRAIN_LIST), ("cars_test", test_list)):
        for record in _variable(file, "annotations"):
            try:
                name, number = str(record["fname"]), int(record["class"])
            except (ValueError, IndexError, TypeError) as error:
                raise ValueError(
                    f"{file}: a record has no fname and class; the list with labels is needed"
                ) from error
            if not 1 <= number <= len(classes):
                raise ValueError(f"{file}: {name} has class {number}, but there are {len(classes)} classes")
            names.append(f"{folder}/{name}")
            numbers.append(number)
    half = len(classes) // 2
    return ImageTable.from_names(
        FileImages(root, names),
        names,
        [classes[number - 1] for number in numbers],
        splits=["train" if number <= half else "test" for number in numbers],
    )


def _variable(file: Path, name: str) -> Any:
    """(N,) a variable of a MATLAB file."""
    from scipy.io import loadmat  # slow to import, and wanted by nothing else

    if not file.is_file():
        raise ValueError(f"{file}: the file is missing; it is a part of Cars-196")
    try:
        return loadmat(str(file), squeeze_me=True)[name].reshape(-1)
    except Exception as error:  # scipy and zlib have no kind of error in common for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{file}: not a MATLAB file with a variable {name}: {reason}") from error
