"""``prism audit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism_dml.cli.output import print_json, print_table, progress_bar, write_json

if TYPE_CHECKING:
    import pandas as pd

    from prism_dml.audit import Audit

CLASSES_SHOWN = 10
WRITTEN = ("issues.csv", "issues.parquet", "summary.json", "suggestions.json", "report.html")
"""Files of an audit."""


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
            embedded again, and calibrated scores of those that it has learned from stay, as long as paths and labels
            are the same: pixels are not compared, but an image file modified after the run is embedded anew.
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
        ValueError: the model, the embeddings or the data cannot be read, they do not belong together, there is no
            such split, or only one class, with which there is nothing to compare; or the result would overwrite what
            is read, or pictures of others.
        OSError: the folder cannot be written to, which is tried before anything is embedded.
    """
    if suspects < 1:
        raise ValueError(f"--suspects must be at least 1, not {suspects}")
    if out.is_file():
        raise ValueError(f"--out must be a folder: {out}")
    import numpy as np

    from prism_dml.audit import (
        find_label_issues,
        make_audit,
        measure_reliability,
        suggest_corrections,
        write_report,
    )
    from prism_dml.audit.report import refuse_other_pictures
    from prism_dml.cli.samples import are_embeddings, of_embeddings, of_run
    from prism_dml.data import place, refuse_input, refuse_overwriting, write_corrections
    from prism_dml.files import refuse_unwritable

    for name in WRITTEN:
        refuse_overwriting(out / name, [run_or_embeddings])
        if data is not None:
            refuse_input(out / name, place(data))
    refuse_other_pictures(out)
    if are_embeddings(run_or_embeddings):
        sample_set = of_embeddings(run_or_embeddings, data, split)
    elif data is None:
        raise ValueError(f"DATA is missing: {run_or_embeddings} holds no embeddings, so images are embedded")
    else:
        embedding = {
            "batch_size": batch_size,
            "workers": workers,
            "max_unreadable": max_unreadable,
            "device": device,
        }
        refuse_unwritable(out / "issues.parquet")
        sample_set = of_run(run_or_embeddings, data, split, embedding)
    table = sample_set.table
    known = np.asarray(sample_set.vectors).any(axis=1)
    if (classes := len(set(sample_set.labels[known]))) < 2:
        raise ValueError(f"2 classes or more are needed, the data has {classes}")
    issues = find_label_issues(sample_set.vectors, sample_set.labels, sample_set.scores)
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
        "ambiguous_classes": result.ambiguous_classes,
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
    if mixed := [f"{one} and {other}" for one, other in result.ambiguous_classes]:
        more = [f"{len(mixed) - CLASSES_SHOWN:,} more pairs"] if len(mixed) > CLASSES_SHOWN else []
        print(f"Classes mixed as if they were one: {'; '.join(mixed[:CLASSES_SHOWN] + more)}")
    print(f"Review them: {out / 'report.html'}")
