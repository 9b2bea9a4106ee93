"""Images in the row groups of parquet files, on disk or in a store, read when a batch needs them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from prism_dml.data.remote import RemoteFile, StoreError, read_parts, read_ranges
from prism_dml.data.table import ImageSource, IntArray, SelectedImages

Shard = Path | RemoteFile

HELD_BYTES = 512 * 2**20
"""Row groups up to this size in all stay in memory once read; the others are read again when asked for."""
FOOTER_BYTES = 32 * 2**20
"""Footers of files up to this size in all stay in memory; one takes some kilobytes for 100 row groups."""


class ParquetImages:
    """Image bytes in the row groups of parquet files, read when asked for; the last ones stay in memory.

    A row group is read as a whole, and of it only the column `image`. What that costs, in bytes read for each byte
    that is asked for: in the order of the table 1; in random order, with G images in a row group and a share h of the
    data in memory (512 MiB in each process), up to (1 - h) * G. `PKSampler` with `blocks` sweeps over the row groups
    instead, all classes at once. For G = 100, P = 16, K = 4 and h = 0.25 that is, in place of 60, 1.1 for classes of
    250 images stored in random order and 11 for classes of 25, and 1.2 for classes of 25 stored by class
    (`benchmarks/row_groups.py`). Every worker
    process reads for itself, so all this is once for each of them. Small classes are best stored by class, and in small
    row groups; a copy on disk can be put before a store (`filecache::s3://...`, see fsspec).

    Of files in a store, the row groups of a batch are fetched together, with as many requests at once as fsspec makes.

    Args:
        files: F of them.
        groups: (G, 2) the number of a file, and of a row group in it.
        starts: (G + 1,) number of the first image of each row group, and of all images.
        ranges: (G, 2) offsets between which the file has the row group's images.
    """

    def __init__(self, files: Sequence[Shard], groups: IntArray, starts: IntArray, ranges: IntArray) -> None:
        self.files = list(files)
        self.groups, self.starts, self.ranges = groups, starts, ranges
        self._forget()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        """What a worker process needs: where the bytes are, not the bytes."""
        return {name: getattr(self, name) for name in ("files", "groups", "starts", "ranges")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def read(self, i: int) -> bytes:
        """The encoded bytes of image i, or of the file that its row names; OSError or ValueError without."""
        group = int(self.blocks(i))
        image = self._row_group(group)[i - int(self.starts[group])].as_py() or {}
        data: bytes | None = image.get("bytes")
        if data is not None:
            return data
        if image.get("path") is None:
            raise ValueError("the row has no image")
        file: Path | RemoteFile = self.files[self.groups[group, 0]].parent / image["path"]
        return file.read_bytes()

    def blocks(self, indices: Any) -> NDArray[np.int64]:
        """(N,) the number of the row group of each image."""
        numbers: NDArray[np.int64] = np.searchsorted(self.starts, indices, side="right").astype(np.int64) - 1
        return numbers

    def fetch(self, indices: IntArray) -> None:
        """Read what `read` will be asked for, up to half of what stays in memory, with one call to the store."""
        wanted, first = np.unique(self.blocks(indices), return_index=True)
        wanted = wanted[np.argsort(first)]
        with self._lock:
            files: list[RemoteFile] = []
            groups: list[int] = []
            for group in wanted.tolist():
                file = self.files[self.groups[group, 0]]
                if group in self._held:
                    self._held.move_to_end(group)
                elif isinstance(file, RemoteFile):
                    files.append(file)
                    groups.append(group)
            fits = np.cumsum(np.diff(self.ranges[groups], axis=1)) <= HELD_BYTES // 2
            groups = groups[: int(fits.sum())]
            ranges = [(int(start), int(stop)) for start, stop in self.ranges[groups]]
            contents: list[bytes] = []
            with suppress(FileNotFoundError):  # `read` says of which image
                contents = read_ranges(files[: len(groups)], ranges)
            for group, (start, _), content in zip(groups, ranges, contents, strict=False):
                with suppress(ValueError):  # likewise
                    self._hold(group, [(start, content)])

    def _row_group(self, group: int) -> pa.ChunkedArray:
        with self._lock:  # threads that want neighbours wait for one reading of their row group
            if group not in self._held:
                file = self.files[self.groups[group, 0]]
                start, stop = (int(offset) for offset in self.ranges[group])
                self._hold(group, read_parts(file, [(start, stop)]) if isinstance(file, RemoteFile) else [])
            self._held.move_to_end(group)
            return self._held[group]

    def _hold(self, group: int, parts: Sequence[tuple[int, bytes]]) -> None:
        number, place = (int(value) for value in self.groups[group])
        file = self.files[number]
        with open_parquet(file, self.footer(number), parts) as opened, reading(file):
            rows = opened.read_row_group(place, columns=["image"], use_threads=False)
        expected = int(self.starts[group + 1] - self.starts[group])
        if rows.num_rows != expected:
            raise ValueError(f"{file}: a group of {expected} rows has {rows.num_rows}")
        self._held[group] = rows.column("image")
        self._held_bytes += rows.nbytes
        while self._held_bytes > HELD_BYTES and len(self._held) > 1:
            self._held_bytes -= self._held.popitem(last=False)[1].nbytes

    def footer(self, number: int) -> pq.FileMetaData:
        """What the end of a file says of its row groups; of the files used last, it is read once."""
        if number not in self._footers:
            with open_parquet(self.files[number]) as opened:
                self._footers[number] = opened.metadata
            while (
                len(self._footers) > 1
                and sum(f.serialized_size for f in self._footers.values()) > FOOTER_BYTES
            ):
                self._footers.popitem(last=False)
        self._footers.move_to_end(number)
        return self._footers[number]

    def _forget(self) -> None:
        self._lock = Lock()
        self._held: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        self._held_bytes = 0
        self._footers: OrderedDict[int, pq.FileMetaData] = OrderedDict()


def storage_blocks(images: ImageSource) -> IntArray | None:
    """(N,) the row group of each image, for `PKSampler`; None unless they lie in row groups and memory is too small."""
    if isinstance(images, SelectedImages):
        blocks = storage_blocks(images.source)
        return None if blocks is None else blocks[images.indices]
    if not isinstance(images, ParquetImages) or np.diff(images.ranges, axis=1).sum() <= HELD_BYTES:
        return None
    return images.blocks(np.arange(len(images)))


def open_parquet(
    file: Shard, metadata: pq.FileMetaData | None = None, parts: Sequence[tuple[int, bytes]] = ()
) -> pq.ParquetFile:
    """A parquet file, to be closed.

    Args:
        file: on disk or in a store.
        metadata: its footer, if it is here already.
        parts: offsets and bytes of it that are here already.

    Raises:
        ValueError: it is not there, or not a readable parquet file.
        StoreError: see `reaching`.
    """
    with reading(file):
        source = file.open(parts) if isinstance(file, RemoteFile) else file
        return pq.ParquetFile(source, metadata=metadata)


@contextmanager
def reading(file: Shard) -> Iterator[None]:
    """What goes wrong with the content of a parquet file as ValueError, one line."""
    try:
        yield
    except StoreError:
        raise
    except FileNotFoundError as error:
        raise ValueError(f"{file}: no such file") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{file}: not a readable parquet file: {reason}") from error
