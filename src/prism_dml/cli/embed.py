"""``prism embed``, and the embedding of a table that other commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism_dml.cli.output import print_json, progress_bar

if TYPE_CHECKING:
    from torch import Tensor

    from prism_dml.data import ImageTable
    from prism_dml.models import Embedder


def embed(
    run: Path,
    data: str,
    *,
    out: Path,
    split: str | None = None,
    batch_size: int = 256,
    workers: int = 0,
    max_unreadable: float = 0.01,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Write the embeddings of a data set to a file.

    Parquet gets a row for each image: path, label, clean_label (where known) and embedding. NPZ gets the
    arrays embeddings (N, D), labels (N,) as numbers into classes (C,), paths (N,), and, where the truth is
    known, clean_labels (N,), -1 for a true class that is none of the classes.

    Args:
        run: Folder of a training run or of a model.
        data: Folder of class folders, CSV, or parquet, on disk or at a URL (s3://, gs://, https:// ...).
        out: File to write, .parquet or .npz; replaced if it exists.
        split: Only this split of the data; all of it if not given.
        batch_size: Images at once.
        workers: Processes that decode large images.
        max_unreadable: Share of the images, in [0, 1], that may be unreadable; they are named and left out.
        device: auto, cpu, cuda or cuda:N.
        json: Print the result as JSON.

    Raises:
        ValueError: the model or the data cannot be read, or the file is of neither kind.
    """
    from prism_dml.data import place, read_table
    from prism_dml.models import load

    if out.suffix.lower() not in (".parquet", ".npz"):
        raise ValueError(f"--out must end in .parquet or .npz, not '{out.name}'")
    source = place(data)
    if isinstance(source, Path) and source.resolve() == out.resolve():
        raise ValueError(f"--out must not be the data itself: {out}")
    model, table = load(run), read_table(data, split)
    embedded = embed_table(model, table, batch_size, workers, max_unreadable, device)
    write_embeddings(embedded, out)
    count, dim = embedded.vectors.shape
    if json:
        print_json({"out": str(out), "images": count, "embedding_dim": dim, "unreadable": len(table) - count})
    else:
        print(f"{count:,} embeddings of {dim} numbers in {out}")


@dataclass(frozen=True)
class Embedded:
    """A table's images and their embeddings, unreadable images left out."""

    vectors: Tensor
    """(N, D) float32 unit embeddings, on the CPU."""
    table: ImageTable
    """The N samples that they belong to."""


def embed_table(
    model: Embedder,
    table: ImageTable,
    batch_size: int = 256,
    workers: int = 0,
    max_unreadable: float = 0.01,
    device: str = "auto",
) -> Embedded:
    """Embed every readable image of a table, with the model's own preprocessing, showing progress.

    Args:
        model: moved to the device and put into evaluation mode.
        table: N samples.
        batch_size: images at once.
        workers: processes that decode images which do not fit into memory.
        max_unreadable: share in [0, 1] of the images that may be unreadable.
        device: of torch; "auto" takes the first GPU if there is one.

    Raises:
        ValueError: there is no such device, an empty table, or too many unreadable images.
    """
    import torch

    from prism_dml.data import Augment, open_images

    place = choose_device(device)
    model = model.to(place).eval()
    look = model.transform
    with progress_bar() as bar, torch.inference_mode():
        decoding = bar.add_task("decoding", total=len(table))
        images = open_images(
            table,
            look.image_size,
            Augment("none", look.mean, look.std),
            workers,
            max_unreadable,
            device=place,
            resize_size=look.resize_size,
            progress=lambda done, total: bar.update(decoding, completed=done, total=total),
        )
        bar.remove_task(decoding)
        embedding = bar.add_task("embedding", total=len(images.table))
        vectors, index = [], []
        for batch in images.evaluate(batch_size):
            vectors.append(model(batch.images).cpu())
            index.append(batch.index.cpu())
            bar.update(embedding, advance=len(batch.index))
    if not vectors:
        raise ValueError("none of the images is readable")
    return Embedded(torch.cat(vectors), images.table.select(torch.cat(index).numpy()))


def choose_device(name: str) -> str:
    """The torch device of a name; "auto" is the first GPU, else the CPU.

    Raises:
        ValueError: there is no such device here.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"no such device here: {name}") from error
    return name


def write_embeddings(embedded: Embedded, out: Path) -> None:
    """Write embeddings as `prism embed` describes it, in one piece: never half a file.

    Args:
        embedded: N embeddings and their samples.
        out: .parquet or .npz file; its folder is made.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from prism_dml.files import replacing

    vectors, table = embedded.vectors.numpy(), embedded.table
    classes = np.array(table.classes)
    if out.suffix.lower() == ".npz":
        arrays: dict[str, Any] = {"embeddings": vectors, "paths": np.array(table.paths)}
        arrays |= {"labels": table.labels, "classes": classes}
        if table.clean_labels is not None:
            arrays["clean_labels"] = table.clean_labels
        with replacing(out) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
    else:
        columns = {"path": pa.array(table.paths), "label": pa.array(classes[table.labels])}
        if table.clean_labels is not None:
            columns["clean_label"] = pa.array(classes[table.clean_labels], mask=table.clean_labels < 0)
        flat = pa.array(vectors.reshape(-1))
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        with replacing(out) as temporary:
            pq.write_table(pa.table(columns), temporary)
