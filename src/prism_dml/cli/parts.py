"""A data set embedded part by part, by one process or several, that goes on where it was stopped."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism_dml.cli.output import progress_bar

if TYPE_CHECKING:
    from torch import Tensor

    from prism_dml.data import ImageTable
    from prism_dml.data.parts import Job

logger = logging.getLogger("prism_dml")


@dataclass(frozen=True)
class Settings:
    """How a data set is embedded; see `prism embed`."""

    run: Path
    data: str
    out: Path
    split: str | None
    rows_per_part: int
    batch_size: int | None
    workers: int
    max_unreadable: float
    device: str


def embed_in_parts(settings: Settings) -> dict[str, Any]:
    """Make the parts that this process is to make and that are not there, whole; what the folder then has.

    Of W processes (RANK and WORLD_SIZE in the environment, as torchrun sets them) number r makes the parts r, r + W,
    r + 2 W ... They need not know of each other. A part depends on nothing but the model, its own rows and the batch
    size.

    Raises:
        ValueError: the model or the data cannot be read, the folder holds another job, or too many images of all parts
            are unreadable.
        OSError: the store of the data fails, or a part cannot be written; those before it are whole.
    """
    from prism_dml.data import read_table
    from prism_dml.data.parts import Job, data_mark, open_job
    from prism_dml.models import load, model_checksum

    if not 0 <= settings.max_unreadable <= 1:
        raise ValueError(f"max_unreadable must be in [0, 1], not {settings.max_unreadable}")
    model, table = load(settings.run), read_table(settings.data, settings.split)
    dim = model.config["embedding_dim"]
    job = Job(
        model_checksum(model), data_mark(table), settings.split, dim, len(table), settings.rows_per_part
    )
    open_job(settings.out, job)
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if not 0 <= rank < processes:
        raise ValueError(f"RANK must be below WORLD_SIZE: they are {rank} and {processes}")
    own = range(rank, job.num_parts, processes)
    todo = [part for part in own if _is_missing(settings.out, job, part)]
    todo = sorted([*todo, *_readable_now(settings.out, job, set(own) - set(todo), table)])
    left_out = _left_out(settings.out, job, todo)
    _refuse_if_many(left_out, job, settings.max_unreadable)
    if todo:
        _embed(model, table, job, todo, left_out, settings)
    return summary(settings.out, settings.max_unreadable)


def summary(out: Path, max_unreadable: float) -> dict[str, Any]:
    """What a folder of parts has; ValueError if more images of the job are unreadable than the share allows."""
    from prism_dml.data.parts import read_job

    job = read_job(out)
    left_out = _left_out(out, job, [])
    _refuse_if_many(left_out, job, max_unreadable)
    unreadable = sum(left_out.values())
    rows = sum(len(job.rows_of(part)) for part in left_out)
    counts = {"images": rows - unreadable, "embedding_dim": job.embedding_dim, "unreadable": unreadable}
    return {"out": str(out), **counts, "parts": len(left_out), "parts_of_job": job.num_parts}


def _embed(
    model: Any, table: ImageTable, job: Job, todo: list[int], left_out: dict[int, int], settings: Settings
) -> None:
    import torch

    from prism_dml.cli.embed import choose_device
    from prism_dml.data import Augment, StreamingBatches, images_at_once
    from prism_dml.data.parts import part_of, rows_by_batch

    place = choose_device(settings.device)
    if place == "cuda":
        place = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    model, look = model.to(place).eval(), model.transform
    images = StreamingBatches(
        table,
        look.image_size,
        Augment("none", look.mean, look.std),
        look.resize_size,
        settings.workers,
        max_unreadable=1.0,  # the share is that of the whole job
        device=torch.device(place),
    )
    size = images_at_once(look.image_size, place) if settings.batch_size is None else settings.batch_size
    batches = [rows for part in todo for rows in rows_by_batch(job, part, size)]
    waiting = list(todo)
    vectors: list[Tensor] = []
    rows: list[Tensor] = []

    def finish() -> None:
        part = waiting.pop(0)
        left_out[part] = _write(settings.out, job, part, table, vectors, rows)
        vectors.clear()
        rows.clear()
        bar.update(task, completed=sum(len(job.rows_of(done)) for done in todo if done not in waiting))
        _refuse_if_many(left_out, job, settings.max_unreadable)

    with progress_bar(shown=os.environ.get("RANK", "0") == "0") as bar, torch.inference_mode():
        task = bar.add_task("embedding", total=sum(map(len, batches)))
        for batch in images.in_order(batches):
            index = batch.index.cpu()
            while waiting[0] != part_of(job, int(index[0])):
                finish()
            vectors.append(model(batch.images).cpu())
            rows.append(index)
            bar.update(task, advance=len(index))
        while waiting:
            finish()


def _write(
    out: Path, job: Job, part: int, table: ImageTable, vectors: list[Tensor], rows: list[Tensor]
) -> int:
    """Write a part; how many of its rows are unreadable."""
    import torch

    from prism_dml.data import Embedded, embedding_rows
    from prism_dml.data.parts import write_part

    index = torch.cat([torch.empty(0, dtype=torch.int64), *rows]).numpy()
    found = torch.cat([torch.empty(0, job.embedding_dim), *vectors])
    unreadable = sorted(set(job.rows_of(part)) - set(index.tolist()))
    write_part(out, job, part, embedding_rows(Embedded(found, table.select(index))), unreadable)
    return len(unreadable)


def _is_missing(out: Path, job: Job, part: int) -> bool:
    """Whether a part is to be made; a damaged one is named."""
    from prism_dml.data.parts import DamagedPart, read_part

    try:
        read_part(out, job, part)
    except FileNotFoundError:
        return True
    except DamagedPart as error:
        logger.warning("%s; it is made anew", error)
        return True
    return False


def _readable_now(out: Path, job: Job, parts: set[int], table: ImageTable) -> list[int]:
    """Parts that leave out an image which can be read by now; those that still cannot are named, as at first."""
    from prism_dml.data import read_image
    from prism_dml.data.cache import Unreadable
    from prism_dml.data.parts import DamagedPart, read_unreadable

    again, unreadable = [], Unreadable(job.rows + 1, max_share=1.0)  # the share is judged over the whole job
    for part in sorted(parts):
        with suppress(FileNotFoundError, DamagedPart):  # another process sees to it
            for row in read_unreadable(out, job, part):
                try:
                    read_image(table, row)
                except ValueError as error:
                    unreadable.add(error)
                else:
                    again.append(part)
                    break
    unreadable.close()
    return again


def _left_out(out: Path, job: Job, todo: list[int]) -> dict[int, int]:
    """How many rows each part leaves out that is there and not to be made."""
    from prism_dml.data.parts import DamagedPart, read_unreadable

    counts = {}
    for part in set(range(job.num_parts)) - set(todo):
        try:
            counts[part] = len(read_unreadable(out, job, part))
        except (FileNotFoundError, DamagedPart):  # another process sees to it
            continue
    return counts


def _refuse_if_many(left_out: dict[int, int], job: Job, max_share: float) -> None:
    count = sum(left_out.values())
    if count > max_share * job.rows or count == job.rows:
        hint = "" if count == job.rows else " (a higher max_unreadable puts up with more)"
        share = f"more than the share of {max_share:g} that is put up with"
        raise ValueError(f"{count} of {job.rows} images are unreadable, {share}{hint}")
