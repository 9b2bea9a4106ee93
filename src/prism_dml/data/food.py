"""Food-101 and Food-101N as they are published: lists in meta/ beside images/CLASS/IMAGE."""

from __future__ import annotations

from pathlib import Path

from prism_dml.data.table import FileImages, ImageTable

CLEAN_LISTS, NOISY_LIST = ("train.txt", "test.txt"), "imagelist.tsv"
KEY, VERDICT = "class_name/key", "verification_label"


def is_food(root: Path) -> bool:
    """Whether a folder is laid out like Food-101 or Food-101N."""
    meta = root / "meta"
    return (meta / NOISY_LIST).is_file() or all((meta / name).is_file() for name in CLEAN_LISTS)


def is_food_list(file: Path) -> bool:
    """Whether a file is one of the lists in Food-101N's meta/."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        return lines.readline().split("\t")[0].strip() == KEY


def read_food(root: Path) -> ImageTable:
    """Images of Food-101 (both of its splits pooled) or of Food-101N.

    The first half of the classes by name (50) is the split "train", the others (51) are "test", as in the PRISM paper.
    Of Food-101N people have looked at a part only: `read_food_list` reads that part with its truth.

    Raises:
        ValueError: a list is missing or damaged.

    Source: Bossard et al., "Food-101", ECCV 2014; Lee et al., "CleanNet", CVPR 2018 (Food-101N).
    """
    meta = root / "meta"
    if (meta / NOISY_LIST).is_file():
        return read_food_list(meta / NOISY_LIST)
    keys = [
        f"{line.strip()}.jpg"
        for name in CLEAN_LISTS
        for line in (meta / name).read_text(encoding="utf-8").splitlines()
        if line.strip()
    ]
    return _table(meta, keys, None)


def read_food_list(file: Path) -> ImageTable:
    """Images of a list in Food-101N's meta/: imagelist.tsv, or verified_train.tsv and verified_val.tsv.

    The verified lists say of each image whether its label is right; the true class of the others counts as none of
    the classes.

    Raises:
        ValueError: the list is damaged, or meta/classes.txt is missing.
    """
    header, *lines = file.read_text(encoding="utf-8").splitlines()
    columns = [name.strip() for name in header.split("\t")]
    keys: list[str] = []
    verdicts: list[str] = []
    for number, line in enumerate(lines, start=2):
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split("\t")]
        if len(fields) != len(columns):
            raise ValueError(
                f"{file}, line {number}: {len(fields)} fields, but the header has {len(columns)}"
            )
        keys.append(fields[0])
        if VERDICT in columns:
            verdicts.append(fields[columns.index(VERDICT)])
            if verdicts[-1] not in ("0", "1"):
                raise ValueError(f"{file}, line {number}: {VERDICT} must be 0 or 1, not {verdicts[-1]!r}")
    return _table(file.parent, keys, verdicts if VERDICT in columns else None)


def _table(meta: Path, keys: list[str], verdicts: list[str] | None) -> ImageTable:
    """The images CLASS/IMAGE of a data set, and for each whether its label is right, if that is known."""
    train = _train_classes(meta / "classes.txt")
    labels: list[str] = []
    for key in keys:
        label, slash, _ = key.partition("/")
        if not slash:
            raise ValueError(f"{meta}: an image is listed as {key!r}, not as CLASS/IMAGE")
        labels.append(label)
    if not keys:
        raise ValueError(f"{meta}: the list of images is empty")
    names = [f"images/{key}" for key in keys]
    truth = None
    if verdicts is not None:
        truth = [label if right == "1" else None for label, right in zip(labels, verdicts, strict=True)]
    splits = ["train" if label in train else "test" for label in labels]
    return ImageTable.from_names(FileImages(meta.parent, names), names, labels, truth, splits)


def _train_classes(file: Path) -> set[str]:
    """The first half of the classes by name."""
    if not file.is_file():
        raise ValueError(f"{file}: the file is missing; it names the classes")
    names = {line.strip() for line in file.read_text(encoding="utf-8").splitlines()}
    classes = sorted(names - {"", "class_name"})  # Food-101N's list has a header
    return set(classes[: len(classes) // 2])
