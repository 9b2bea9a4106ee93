"""``prism search``."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism_dml.cli.output import print_json, print_table, write_json

if TYPE_CHECKING:
    from PIL import Image

    from prism_dml.data import ImageTable

logger = logging.getLogger("prism_dml")

SHEET_ROWS = 50
"""Queries that a contact sheet shows at most."""


def search(
    run: Path,
    index: Path,
    query: list[Path],
    *,
    matches: int = 5,
    sheet: Path | None = None,
    json: Path | None = None,
    batch_size: int | None = None,
    max_unreadable: float = 0.0,
    device: str = "auto",
) -> None:
    """Find the images of an index that are most like others.

    Args:
        run: Folder of the run or model that the index was built with.
        index: Folder that `prism index` wrote.
        query: Images, or folders of images at any depth.
        matches: Images to find for each query; fewer if the index has fewer.
        sheet: PNG to draw: the first 50 queries and what was found, images read again from the indexed data.
        json: File to write the result to as JSON; - prints it instead of the table.
        batch_size: Images at once; null: 256 on a GPU, fewer on a CPU, whose cache they must fit into.
        max_unreadable: Share of the queries, in [0, 1], that may be unreadable; they are named and left out.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        ValueError: the model, the index or a query cannot be read, the index was built with another model, or a file
            to write is one of these.
        OSError: a file cannot be written, which is tried before anything is embedded.
    """
    if matches < 1:
        raise ValueError(f"--matches must be at least 1, not {matches}")
    if sheet is not None and sheet.suffix.lower() != ".png":
        raise ValueError(f"--sheet must end in .png, not '{sheet.name}'")
    from prism_dml.cli.embed import embed_table
    from prism_dml.data import FileImages, ImageTable, refuse_overwriting
    from prism_dml.files import refuse_unwritable
    from prism_dml.models import load, model_checksum
    from prism_dml.retrieval import load_index
    from prism_dml.training.result import run_files

    built, rows, about = load_index(index)
    if sheet is not None and "data" not in about:
        raise ValueError(f"{index} was built of embeddings alone: --sheet needs one that was built with DATA")
    files = [str(file) for place in query for file in _images(place)]
    model = load(run)
    for target in (sheet, json):
        if target is not None and str(target) != "-":
            refuse_overwriting(
                target, [*map(Path, files), *index.glob("index*"), *index.glob("rows-*"), *run_files(run)]
            )
            refuse_unwritable(target)
    if "model" not in about:
        logger.warning(
            "%s does not tell what model it was built with: similarities mean little to another", index
        )
    elif about["model"] != model_checksum(model):
        raise ValueError(
            f"{index} was built with another model than {run}: search with that one, or build it anew"
        )
    queries = ImageTable.from_names(FileImages(Path(), files), files, ["query"] * len(files))
    embedded = embed_table(model, queries, batch_size, 0, max_unreadable, device)
    similarities, numbers = built.search(embedded.vectors, min(matches, len(built)))
    found = [
        [
            {
                "path": rows["path"][i],
                "label": rows["label"][i],
                "similarity": float(similarity),
                "index": int(i),
            }
            for similarity, i in zip(*row, strict=True)
            if i >= 0
        ]
        for row in zip(similarities, numbers, strict=True)
    ]
    answers = [{"query": path, "matches": row} for path, row in zip(embedded.table.paths, found, strict=True)]
    result = {"index": str(index), "kind": built.kind, "queries": answers}
    if json is not None and str(json) == "-":
        print_json(result)
    else:
        if json is not None:
            write_json(result, json)
        for path, row in zip(embedded.table.paths, found, strict=True):
            shown = [(match["path"], match["label"], f"{match['similarity']:.3f}") for match in row]
            print_table(path, ("Image", "Label", "Similarity"), shown)
    if sheet is not None:
        _draw(embedded.table, found, about["data"], sheet)


def _images(place: Path) -> Iterator[Path]:
    """The image, or the images in a folder, in order."""
    from prism_dml.data.folder import images_below

    if not place.exists():
        raise ValueError(f"{place}: no such file or folder")
    if not place.is_dir():
        yield place
        return
    inside = list(images_below(place))
    if not inside:
        raise ValueError(f"{place}: no images in this folder")
    yield from inside


def _draw(queries: ImageTable, found: list[list[dict[str, Any]]], data: str, sheet: Path) -> None:
    from prism_dml.audit.contact_sheet import plot_matches
    from prism_dml.data import read_image, read_table

    def picture(i: int) -> Image.Image | None:
        try:
            return read_image(table, i)
        except ValueError as error:
            logger.warning("not on the sheet: %s", error)
            return None

    table = read_table(data)
    place = {path: i for i, path in enumerate(table.paths)}
    missing = next((match["path"] for row in found for match in row if match["path"] not in place), None)
    if missing is not None:
        raise ValueError(f"{data} has changed since it was indexed: {missing!r} is not in it")
    shown = range(min(len(queries), SHEET_ROWS))
    plot_matches(
        [(read_image(queries, i), Path(queries.paths[i]).name) for i in shown],
        [[(picture(place[m["path"]]), m["label"], m["similarity"]) for m in found[i]] for i in shown],
        sheet,
    )
