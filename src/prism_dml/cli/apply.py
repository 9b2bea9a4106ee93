"""``prism apply``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from prism_dml.cli.output import print_json, progress_bar

if TYPE_CHECKING:
    from prism_dml.data import Corrections


def apply(data: str, corrections: Path, *, out: Path, json: bool = False) -> None:
    """Write a data set with its labels corrected; the input stays as it is.

    Corrections that do not match the data are refused: every one names its sample by number, path and given
    label, and all of them the data by its fingerprint. Other columns of a CSV or of parquet go through unchanged.

    Args:
        data: Folder of class folders, CSV, or parquet, on disk or at a URL (s3://, gs://, https:// ...): the data that
            was audited, all of its splits. Or, where embeddings were audited without their images, these: .npz,
            .parquet or a folder of parts as `prism embed` writes them.
        corrections: JSON that the page of `prism audit` exported, or its suggestions.json; the suspects that have no
            suggestion there stay as they are, and are counted if the other files of the audit lie beside it.
        out: File to write, .csv or .parquet; replaced if it exists. Of embeddings .csv gets path, label and the other
            columns that are text or numbers, .parquet the embeddings too.
        json: Print the result as JSON.

    Raises:
        ValueError: the data or the corrections cannot be read, they do not match, or nothing would be left.
    """
    from prism_dml.data import (
        apply_corrections,
        embeddings_table,
        holds_embeddings,
        place,
        read_corrections,
        read_table,
        write_relabelled,
        write_table,
    )

    decided = read_corrections(corrections)
    source = place(data)
    if holds_embeddings(source):
        result = apply_corrections(embeddings_table(source), decided)
        write_relabelled(result.table, out, source)
    else:
        result = apply_corrections(read_table(data), decided)
        with progress_bar() as bar:
            task = bar.add_task("writing", total=len(result.table))
            write_table(
                result.table, out, data, lambda done, total: bar.update(task, completed=done, total=total)
            )
    table, left = result.table, _suspects_left(corrections, decided)
    if json:
        counts = {"relabelled": result.relabelled, "kept": result.kept, "dropped": result.dropped}
        counted = {"out": str(out), "images": len(table), **counts, "suspects_left": left}
        print_json(counted | {"new_classes": result.new_classes})
        return
    print(
        f"{out}: {len(table):,} images; {result.relabelled:,} relabelled, {result.kept:,} found right, "
        f"{result.dropped:,} dropped"
    )
    if left and decided.undecided is not None:
        print(
            f"Suspects that nobody has decided on: {left:,}. Go on on the same page and apply all decisions anew."
        )
    elif left:
        print(f"Suspects left as they are (no other class is suggested, or the classes overlap): {left:,}")
    if result.new_classes:
        print(f"New classes: {', '.join(result.new_classes)}")


def _suspects_left(file: Path, decided: Corrections) -> int | None:
    """How many suspects have no decision, or no correction in suggestions.json; None where nothing is known of it."""
    if decided.undecided is not None:
        return decided.undecided
    if file.name != "suggestions.json":
        return None
    try:
        summary = json.loads((file.parent / "summary.json").read_text(encoding="utf-8"))
        known = summary["fingerprint"] == decided.fingerprint
        return summary["label_issues"] - len(decided.items) if known else None
    except (OSError, ValueError, LookupError, TypeError):  # it lies somewhere else by now
        return None
