"""``prism corrupt``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from prism_dml.cli.output import print_json, progress_bar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Kind = Literal["symmetric", "small-cluster", "open-set", "pair", "class-conditional"]


def corrupt(
    data: str,
    *,
    kind: Kind,
    rate: float | None = None,
    out: Path,
    confusion: Path | None = None,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Make some labels of a data set wrong, on purpose, for experiments.

    Only the labels of the split "train" are touched, where the data has splits. The true labels are written
    beside the wrong ones; the input stays as it is. Other columns of a CSV or of parquet go through unchanged.

    Args:
        data: Folder of class folders, CSV, or parquet, on disk or at a URL (s3://, gs://, https:// ...).
        kind: symmetric: another class, uniformly; pair: the next class; class-conditional: by a confusion
            matrix; small-cluster: whole classes are dissolved into others, as when the true class of an image
            is not in the label set, images that are alike into the same; open-set: each image by itself.
        rate: Share of the labels (small-cluster, open-set: of the classes) that becomes wrong, in [0, 1]. With a
            confusion matrix its wrong part is scaled to the rate; without a rate it is taken as it is.
        out: File to write, .csv or .parquet; replaced if it exists.
        confusion: For class-conditional, a CSV of numbers without a header: row i holds the probabilities
            that an image of class i gets each of the labels. Classes are those of the images that are touched, in
            order: by number if all names are whole numbers (9 before 10), else by name.
        seed: The same seed corrupts the same labels.
        json: Print the result as JSON.

    Raises:
        ValueError: the data cannot be read or written, or the arguments do not fit together.
    """
    if confusion is not None and kind != "class-conditional":
        raise ValueError(f"--confusion goes with --kind class-conditional, not with {kind}")
    from prism_dml.data import corrupt_table, read_table, refuse_overwriting, write_table

    refuse_overwriting(out, [confusion])
    table = read_table(data)
    matrix = None if confusion is None else _read_matrix(confusion)
    with progress_bar() as bar:
        task = bar.add_task("working", total=len(table))
        noisy = corrupt_table(
            table,
            kind,
            rate,
            seed,
            confusion=matrix,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
        bar.reset(task, description="writing", total=len(table))
        write_table(noisy, out, data, lambda done, total: bar.update(task, completed=done, total=total))
    touched = noisy if noisy.splits is None else noisy.select(noisy.members("train"))
    assert touched.is_noisy is not None
    open_to_noise, wrong = len(touched), int(touched.is_noisy.sum())
    share = wrong / open_to_noise
    if json:
        result = {"out": str(out), "kind": kind, "rate": rate, "seed": seed, "images": len(noisy)}
        print_json(result | {"train_images": open_to_noise, "wrong_labels": wrong, "wrong_share": share})
    else:
        labels = "labels" if noisy.splits is None else "training labels"
        print(f"{out}: {wrong:,} of {open_to_noise:,} {labels} ({share:.1%}) are wrong ({kind}, seed {seed})")


def _read_matrix(file: Path) -> NDArray[np.float64]:
    import numpy as np

    try:
        return np.loadtxt(file, delimiter=",", ndmin=2, encoding="utf-8")
    except ValueError as error:
        raise ValueError(f"{file}: not a CSV of numbers without a header: {error}") from error
