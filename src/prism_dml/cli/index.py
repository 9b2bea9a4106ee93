"""``prism index``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from prism_dml.cli.output import print_json


def index(
    run_or_embeddings: Path,
    data: str | None = None,
    *,
    out: Path,
    kind: Literal["auto", "flat", "hnsw", "ivf-pq"] = "auto",
    split: str | None = None,
    batch_size: int | None = None,
    workers: int = 0,
    max_unreadable: float = 0.01,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Build an index of a data set's embeddings, to search in.

    Args:
        run_or_embeddings: Folder of a training run or of a model, or embeddings with labels: .npz, .parquet or a
            folder of parts as `prism embed` writes them.
        data: Folder of class folders, CSV, or parquet, on disk or at a URL (s3://, gs://, https:// ...). With
            embeddings it may be missing: a contact sheet of what is found can then not be drawn; else every embedding
            belongs to the image of its path.
        out: Folder for the index; an index that is there is replaced.
        kind: flat: exact, for up to 50,000 images; hnsw: nearly exact and quick, up to 2 million; ivf-pq:
            approximate, 64 bytes an image, for more; auto chooses by these sizes.
        split: Only this split of the data; all of it if not given.
        batch_size: Images at once; null: 256 on a GPU, fewer on a CPU, whose cache they must fit into.
        workers: Processes that decode large images.
        max_unreadable: Share of the images, in [0, 1], that may be unreadable; they are named and left out.
        device: auto, cpu, cuda or cuda:N.
        json: Print the result as JSON.

    Raises:
        ValueError: the model, the embeddings or the data cannot be read, they do not belong together, the images are
            too few for the kind, or the folder holds other files.
        OSError: the folder cannot be written to, which is tried before anything is embedded.
    """
    if out.is_file():
        raise ValueError(f"--out must be a folder: {out}")
    import numpy as np
    import pandas as pd

    from prism_dml.cli.embed import embed_table, refuse_other_files
    from prism_dml.cli.samples import are_embeddings, matched
    from prism_dml.data import place, read_embeddings, read_table, refuse_input
    from prism_dml.files import refuse_unwritable
    from prism_dml.models import load, model_checksum
    from prism_dml.retrieval import build_index, holds_index, save_index

    refuse_other_files(out, holds_index, "an index")
    if data is not None:
        refuse_input(out / "index.json", place(data))
    about: dict[str, str] = {}
    vectors: Any
    if are_embeddings(run_or_embeddings):
        if split is not None:
            raise ValueError("--split needs a model: embeddings name no splits")
        found = read_embeddings(run_or_embeddings)
        vectors, paths, unreadable = found.vectors, found.paths, 0
        labels = np.array(found.labels, dtype=object)
        if data is not None:
            matched(run_or_embeddings, found, read_table(data))
        if found.model is not None:
            about["model"] = found.model
    elif data is None:
        raise ValueError(f"DATA is missing: {run_or_embeddings} holds no embeddings, so images are embedded")
    else:
        model, table = load(run_or_embeddings), read_table(data, split)
        about["model"] = model_checksum(model)
        refuse_unwritable(out / "index.json")
        embedded = embed_table(model, table, batch_size, workers, max_unreadable, device)
        vectors, paths = embedded.vectors, list(embedded.table.paths)
        labels = np.array(embedded.table.classes, dtype=object)[embedded.table.labels]
        unreadable = len(table) - len(paths)
    built = build_index(vectors, kind)
    if data is not None:
        source = place(data)
        about["data"] = str(source.resolve() if isinstance(source, Path) else source)
    save_index(built, pd.DataFrame({"path": paths, "label": labels}), out, about)
    if json:
        count = {
            "images": len(built),
            "embedding_dim": built.embedding_dim,
            "unreadable": unreadable,
        }
        print_json({"out": str(out), "kind": built.kind, **count})
    else:
        print(
            f"{out}: {len(built):,} images, embeddings of {built.embedding_dim} numbers, {built.kind} index"
        )
