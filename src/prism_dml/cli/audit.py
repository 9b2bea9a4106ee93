"""``prism audit``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism_dml.cli.output import print_json, print_table, progress_bar, write_json

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from prism_dml.audit import Audit
    from prism_dml.data import Embedded, ImageTable

CLASSES_SHOWN = 10

logger = logging.getLogger("prism_dml")


def audit(
    run_or_embeddings: Path,
    data: str | None = None,
    *,
    out: Path,
    split: str | None = None,
    suspects: int = 10_000,
    batch_size: int | None = None,
    workers: int = 0,
    max_unreadable: float = 0.01,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Say which labels of a data set look wrong, and write a page to review them.

    The folder gets issues.csv and issues.parquet with a judgement on each label, summary.json, suggestions.json
    for `prism apply`, and report.html, which opens in any browser, without a network; it exports corrections.json.

    Args:
        run_or_embeddings: Folder of a training run or of a model, or embeddings with labels: .npz, .parquet or a
            folder of parts as `prism embed` writes them. The images of a run whose method judges labels are not
            embedded again, and scores that it has found calibrated stay, unless their labels have changed.
        data: Folder of class folders, CSV, or parquet, on disk or at a URL (s3://, gs://, https:// ...). With
            embeddings it may be missing: the page then shows no images; else every embedding belongs to the image of
            its path.
        out: Folder for the result.
        split: Only this split of the data; all of it if not given.
        suspects: So many suspects are on the page at most, the worst ones; the other files have all.
        batch_size: Images at once; null: 256 on a GPU, fewer on a CPU, whose cache they must fit into.
        workers: Processes that decode large images.
        max_unreadable: Share of the images, in [0, 1], that may be unreadable; they are named and left out.
        device: auto, cpu, cuda or cuda:N.
        json: Print the result as JSON.

    Raises:
        ValueError: the model, the embeddings or the data cannot be read, they do not belong together, or there is no
            such split.
    """
    if suspects < 1:
        raise ValueError(f"--suspects must be at least 1, not {suspects}")
    from prism_dml.audit import (
        find_label_issues,
        make_audit,
        measure_reliability,
        suggest_corrections,
        write_report,
    )
    from prism_dml.data import holds_parts, place, write_corrections

    if run_or_embeddings.is_file() or holds_parts(run_or_embeddings):
        sample_set = _from_embeddings(run_or_embeddings, data, split)
    elif data is None:
        raise ValueError(
            f"DATA is missing: {run_or_embeddings} is no file of embeddings, so images are embedded"
        )
    else:
        embedding = {
            "batch_size": batch_size,
            "workers": workers,
            "max_unreadable": max_unreadable,
            "device": device,
        }
        sample_set = _from_run(run_or_embeddings, data, split, embedding)
    issues = find_label_issues(sample_set.vectors, sample_set.labels, sample_set.scores)
    table = sample_set.table
    noisy = None if table is None else table.is_noisy
    reliability = None if noisy is None else measure_reliability(issues["label_score"].to_numpy(), ~noisy)
    result = make_audit(
        issues,
        sample_set.vectors,
        list(sample_set.paths),
        sample_set.fingerprint,
        sample_set.index,
        reliability=reliability,
        max_suspects=suspects,
    )
    out.mkdir(parents=True, exist_ok=True)
    _write_issues(result, out)
    write_corrections(suggest_corrections(result), out / "suggestions.json")
    with progress_bar() as bar:
        task = bar.add_task("pictures", total=None)
        name = run_or_embeddings.name if data is None else place(data).name
        write_report(
            result,
            out,
            name,
            table,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    summary = _summary(result, run_or_embeddings, data, split)
    write_json(summary, out / "summary.json")
    if json:
        print_json({"out": str(out), **summary})
    else:
        _show(result, out)


@dataclass(frozen=True)
class _Samples:
    """What is audited: N samples."""

    vectors: Any
    """(N, D) embeddings."""
    labels: NDArray[np.str_]
    """(N,) given class names."""
    paths: Sequence[str]
    """(N) identifiers."""
    index: NDArray[np.int64]
    """(N,) their numbers in the whole data."""
    fingerprint: str
    """Of the whole data."""
    table: ImageTable | None
    """Their images, if there are any."""
    scores: pd.DataFrame | None
    """(N) rows of what training found of their labels, if it left something."""


def _from_run(run: Path, data: str, split: str | None, embedding: dict[str, Any]) -> _Samples:
    import numpy as np

    from prism_dml.cli.embed import embed_table
    from prism_dml.data import SelectedImages, read_table, table_fingerprint
    from prism_dml.models import load

    model, whole = load(run), read_table(data)
    inside = np.arange(len(whole)) if split is None else whole.members(split)
    asked = whole.select(inside)
    handed_over = _handed_over(run, asked, embedding["max_unreadable"])
    embedded, scores = handed_over or (embed_table(model, asked, **embedding), None)
    table = embedded.table
    labels = np.array(table.classes)[table.labels]
    # A split and unreadable images leave samples out; their numbers in the whole data are those of its images.
    assert isinstance(table.images, SelectedImages)
    index = table.images.indices
    return _Samples(embedded.vectors, labels, table.paths, index, table_fingerprint(whole), table, scores)


def _handed_over(
    run: Path, table: ImageTable, max_unreadable: float
) -> tuple[Embedded, pd.DataFrame | None] | None:
    """The embeddings and scores that training left, if they are of these images with these labels.

    They must be of all of them, but for such a share that cannot be read now as it could not then.
    """
    import numpy as np
    import torch

    from prism_dml.data import Embedded, read_embeddings
    from prism_dml.data.cache import NAMED_UNREADABLE
    from prism_dml.training.result import EMBEDDINGS

    if not (run / EMBEDDINGS).is_file():
        return None
    found = read_embeddings(run / EMBEDDINGS)
    try:
        index = _matched(run / EMBEDDINGS, found.paths, found.labels, table)
    except ValueError:  # other images, or other labels
        return None
    missing = np.setdiff1d(np.arange(len(table)), index)
    if len(missing) > max_unreadable * len(table):
        return None
    faults = [fault for i in missing if (fault := _fault(table, int(i))) is not None]
    if len(faults) < len(missing):
        return None
    for fault in faults[:NAMED_UNREADABLE]:
        logger.warning("skipped %s", fault)
    if len(faults) > NAMED_UNREADABLE:
        logger.warning("skipped %d unreadable images in all", len(faults))
    order = index.argsort()
    scores = None if found.scores is None else found.scores.iloc[order]
    return Embedded(torch.from_numpy(found.vectors[order]), table.select(index[order])), scores


def _fault(table: ImageTable, i: int) -> ValueError | None:
    """Why an image cannot be read."""
    from prism_dml.data import read_image

    try:
        read_image(table, i)
    except ValueError as error:
        return error
    return None


def _from_embeddings(file: Path, data: str | None, split: str | None) -> _Samples:
    import numpy as np

    from prism_dml.data import fingerprint, read_embeddings, read_table, table_fingerprint

    found = read_embeddings(file)
    labels = np.array(found.labels)
    if data is None:
        if split is not None:
            raise ValueError("--split needs DATA: a file of embeddings names no splits")
        index, mark = np.arange(len(labels)), fingerprint(found.paths, found.labels)
        return _Samples(found.vectors, labels, found.paths, index, mark, None, found.scores)
    whole = read_table(data)
    index = _matched(file, found.paths, found.labels, whole)
    stays = np.ones(len(index), dtype=bool)
    if split is not None:
        stays = np.isin(index, whole.members(split))
        if not stays.any():
            raise ValueError(f"{file}: no embedding is of the split '{split}'")
    paths = [path for path, stay in zip(found.paths, stays, strict=True) if stay]
    index, scores = index[stays], None if found.scores is None else found.scores[stays]
    mark, table = table_fingerprint(whole), whole.select(index)
    return _Samples(found.vectors[stays], labels[stays], paths, index, mark, table, scores)


def _matched(file: Path, paths: Sequence[str], labels: list[str], whole: ImageTable) -> NDArray[np.int64]:
    """(N,) the sample of the data that each embedding is of: in order where paths are the same, else by path."""
    import numpy as np

    if paths == whole.paths:
        index = np.arange(len(paths))
    else:
        place = {path: i for i, path in enumerate(whole.paths)}
        if len(place) < len(whole):
            raise ValueError(
                f"{file}: paths occur twice in the data, so it must have the same samples in order"
            )
        missing = next((path for path in paths if path not in place), None)
        if missing is not None:
            raise ValueError(f"{file}: {missing!r} is not in the data")
        index = np.array([place[path] for path in paths], dtype=np.int64)
    names = np.array(whole.classes)[whole.labels[index]]
    differ = np.flatnonzero(names != np.array(labels))
    if len(differ):
        i = int(differ[0])
        raise ValueError(
            f"{file}: {paths[i]!r} has the label {labels[i]!r}, but {str(names[i])!r} in the data"
        )
    return index


def _write_issues(result: Audit, out: Path) -> None:
    from prism_dml.files import replacing

    rows: pd.DataFrame = result.issues.copy()
    rows.insert(0, "path", result.paths)
    rows.insert(0, "index", result.index)
    with replacing(out / "issues.csv") as temporary:
        rows.to_csv(temporary, index=False)
    with replacing(out / "issues.parquet") as temporary:
        rows.to_parquet(temporary, index=False)


def _summary(result: Audit, source: Path, data: str | None, split: str | None) -> dict[str, Any]:
    from prism_dml.audit import calibration_error

    issues = result.issues
    kinds = issues.loc[issues["is_label_issue"], "issue"].value_counts()
    return {
        "source": str(source),
        "data": data,
        "split": split,
        "fingerprint": result.fingerprint,
        "samples": len(issues),
        "label_issues": result.num_issues,
        "issues_by_kind": {kind: int(count) for kind, count in kinds.items()},
        "noise_rate": result.noise_rate,
        "noise_interval": result.noise_interval,
        "calibration_error": None if result.reliability is None else calibration_error(result.reliability),
        "classes": result.classes.to_dict("records"),
    }


def _show(result: Audit, out: Path) -> None:
    low, high = result.noise_interval
    print(
        f"{result.num_issues:,} of {len(result.issues):,} labels look wrong; about {result.noise_rate:.1%} are "
        f"(95 % interval: {low:.1%} to {high:.1%})"
    )
    rows = [
        (row.name, f"{row.samples:,}", f"{row.suspects:,}", f"{row.wrong_share:.1%}")
        for row in result.classes.head(CLASSES_SHOWN).itertuples(index=False)
    ]
    print_table(
        "The classes with most wrong labels", ("Class", "Images", "Suspects", "Wrong, estimated"), rows
    )
    print(f"Review them: {out / 'report.html'}")
