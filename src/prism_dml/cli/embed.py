"""``prism embed``, and the embedding of a table that other commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from prism_dml.cli.output import print_json, progress_bar

if TYPE_CHECKING:
    from prism_dml.cli.parts import Settings
    from prism_dml.data import Embedded, ImageTable
    from prism_dml.models import Embedder


def embed(
    run: Path,
    data: str,
    *,
    out: Path,
    split: str | None = None,
    rows_per_part: int = 8192,
    devices: int = 1,
    batch_size: int | None = None,
    workers: int = 0,
    max_unreadable: float = 0.01,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Write the embeddings of a data set to a file, or to a folder in parts.

    Parquet gets a row for each image: path, label, clean_label (where known) and embedding. NPZ gets the
    arrays embeddings (N, D), labels (N,) as numbers into classes (C,), paths (N,), and, where the truth is
    known, clean_labels (N,), -1 for a true class that is none of the classes.

    A folder gets parts, part-00000.parquet and so on, each a fixed range of the rows, and manifest.json, which says
    what they are of. Stopped in any way, the same command makes the parts that are missing or damaged and ends with
    the files of a run that was never stopped. Several processes share the parts: --devices starts them here, torchrun
    on many machines with a common folder.

    Args:
        run: Folder of a training run or of a model.
        data: Folder of class folders, CSV, or parquet, on disk or at a URL (s3://, gs://, https:// ...).
        out: File to write, .parquet or .npz, replaced if it exists; or a folder for parts.
        split: Only this split of the data; all of it if not given.
        rows_per_part: Images of each part of a folder.
        devices: Processes that make the parts of a folder, each on a GPU of its own if there are any.
        batch_size: Images at once; null: 256 on a GPU, fewer on a CPU, whose cache they must fit into.
        workers: Processes that decode large images.
        max_unreadable: Share of the images, in [0, 1], that may be unreadable; they are named and left out.
        device: auto, cpu, cuda or cuda:N.
        json: Print the result as JSON.

    Raises:
        ValueError: the model or the data cannot be read, the file is of neither kind or would be a part of the data,
            or the folder holds other embeddings or other files.
        OSError: the file cannot be written, which is tried before anything is embedded.
    """
    from prism_dml.data import (
        holds_parts,
        place,
        read_table,
        refuse_input,
        refuse_overwriting,
        write_embeddings,
    )
    from prism_dml.data.parts import part_file
    from prism_dml.files import refuse_unwritable, resolved
    from prism_dml.models import load, model_checksum
    from prism_dml.training.result import run_files

    is_file = out.suffix.lower() in (".parquet", ".npz") and not out.is_dir()
    if (out.is_file() and not is_file) or (out.suffix and not is_file and not out.is_dir()):
        raise ValueError(f"--out must end in .parquet or .npz, or be a folder, not '{out.name}'")
    source = place(data)
    if isinstance(source, Path) and resolved(source) == resolved(out):
        raise ValueError(f"--out must not be the data itself: {out}")
    if not is_file:
        refuse_other_files(out, holds_parts, "embeddings")
        refuse_input(part_file(out, 0), source)
        from prism_dml.cli.parts import Settings

        settings = Settings(run, data, out, split, rows_per_part, batch_size, workers, max_unreadable, device)
        _embed_in_parts(settings, devices, json)
        return
    if devices != 1:
        raise ValueError("several processes make parts: --out must be a folder")
    model, table = load(run), read_table(data, split)
    refuse_input(out, source, table)
    refuse_overwriting(out, run_files(run))  # an audit goes by what training has left there
    refuse_unwritable(out)
    embedded = embed_table(model, table, batch_size, workers, max_unreadable, device)
    write_embeddings(embedded, out, model_checksum(model))
    count, dim = embedded.vectors.shape
    if json:
        print_json({"out": str(out), "images": count, "embedding_dim": dim, "unreadable": len(table) - count})
    else:
        print(f"{count:,} embeddings of {dim} numbers in {out}")


def _embed_in_parts(settings: Settings, devices: int, json: bool) -> None:
    import os
    import signal

    from prism_dml.cli.parts import embed_in_parts, summary
    from prism_dml.training.launch import launch
    from prism_dml.training.ranks import is_launched

    if devices < 1:
        raise ValueError(f"--devices must be at least 1, not {devices}")
    try:
        if devices > 1 and not is_launched():
            launch(devices, embed_in_parts, settings)
            result = summary(settings.out, settings.max_unreadable)
        else:
            result = embed_in_parts(settings)
    except KeyboardInterrupt as stop:
        again = KeyboardInterrupt(f"stopped; the same command goes on with {settings.out}")
        again.signal = getattr(stop, "signal", signal.SIGINT)  # type: ignore[attr-defined]
        raise again from None
    if os.environ.get("RANK", "0") != "0":  # of several that torchrun has started, one is enough to tell
        return
    if json:
        print_json(result)
        return
    print(
        f"{result['images']:,} embeddings of {result['embedding_dim']} numbers in {settings.out} "
        f"({result['parts']:,} of {result['parts_of_job']:,} parts)"
    )


def refuse_other_files(out: Path, is_ours: Callable[[Path], bool], what: str) -> None:
    """ValueError if a folder holds files, unless `is_ours` tells that they are `what` this command writes."""
    names = (file.name for file in out.glob("*"))
    inside = sorted(name for name in names if not name.startswith("."))
    if inside and not is_ours(out):  # asked after the list was made: another process may begin meanwhile
        raise ValueError(
            f"--out must be a new or empty folder, or one with {what}: {out} holds '{inside[0]}'"
        )


def embed_table(
    model: Embedder,
    table: ImageTable,
    batch_size: int | None = None,
    workers: int = 0,
    max_unreadable: float = 0.01,
    device: str = "auto",
) -> Embedded:
    """Embed every readable image of a table, with the model's own preprocessing, showing progress.

    Args:
        model: moved to the device and put into evaluation mode.
        table: N samples.
        batch_size: images at once; None: see `images_at_once`.
        workers: processes that decode images which do not fit into memory.
        max_unreadable: share in [0, 1] of the images that may be unreadable.
        device: of torch; "auto" takes the first GPU if there is one.

    Raises:
        ValueError: there is no such device, an empty table, or too many unreadable images.
    """
    import torch

    from prism_dml.data import Augment, Embedded, open_images

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
    if torch.device(name).type == "meta":
        raise ValueError("the device meta computes nothing")
    return name
