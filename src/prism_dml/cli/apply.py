"""``prism apply``."""

from __future__ import annotations

from pathlib import Path

from prism_dml.cli.output import print_json, progress_bar


def apply(data: str, corrections: Path, *, out: Path, json: bool = False) -> None:
    """Write a data set with its labels corrected; the input stays as it is.

    Corrections that do not match the data are refused: every one names its sample by number, path and given
    label, and all of them the data by its fingerprint.

    Args:
        data: Folder of class folders, CSV, or parquet, on disk or at a URL (s3://, gs://, https:// ...): the data that
            was audited, all of its splits.
        corrections: JSON that the page of `prism audit` exported, or its suggestions.json.
        out: File to write, .csv or .parquet; replaced if it exists.
        json: Print the result as JSON.

    Raises:
        ValueError: the data or the corrections cannot be read, they do not match, or nothing would be left.
    """
    from prism_dml.data import apply_corrections, read_corrections, read_table, write_table

    decided = read_corrections(corrections)
    result = apply_corrections(read_table(data), decided)
    table = result.table
    with progress_bar() as bar:
        task = bar.add_task("writing", total=len(table))
        write_table(table, out, data, lambda done, total: bar.update(task, completed=done, total=total))
    if json:
        counts = {"relabelled": result.relabelled, "kept": result.kept, "dropped": result.dropped}
        print_json({"out": str(out), "images": len(table), **counts, "new_classes": result.new_classes})
        return
    print(
        f"{out}: {len(table):,} images; {result.relabelled:,} relabelled, {result.kept:,} found right, "
        f"{result.dropped:,} dropped"
    )
    if result.new_classes:
        print(f"New classes: {', '.join(result.new_classes)}")
