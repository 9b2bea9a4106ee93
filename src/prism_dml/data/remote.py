"""Files of a store that fsspec reaches by URL: object stores, web servers, and whatever else it knows."""

from __future__ import annotations

import errno
import io
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.utils import merge_offset_ranges

from prism_dml.files import at_home

_URL = re.compile(r"(?:[a-z][a-z0-9+.-]*::)*[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_MAGIC = re.compile(r"[*\[]")
_GAP = 64 * 1024
"""Bytes between two parts of a file that are rather read along than asked for apart: a request costs more."""


class StoreError(OSError):
    """A store that cannot be reached or refuses, in one line with the URL; it says nothing about the data."""


@dataclass(frozen=True)
class RemoteFile:
    """A file or folder of a store; the part of `pathlib.Path` that readers use, which would spoil a URL."""

    url: str
    size: int | None = field(default=None, compare=False)
    """Bytes, if a listing has told."""

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> RemoteFile:
        return RemoteFile(name if is_url(name) else f"{self.url.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        """The last part of the path; what follows ? in a web address is none of it."""
        url = self.url
        return unquote(urlsplit(url).path if _is_web(url) else url).rstrip("/").rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The name without its last suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The last suffix of the name, with its dot."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> RemoteFile:
        """The folder that it lies in."""
        return RemoteFile(self.url.rstrip("/").rpartition("/")[0])

    def read_bytes(self) -> bytes:
        """The content; FileNotFoundError, or StoreError for anything else that goes wrong."""
        with reaching(self.url):
            filesystem, path = _filesystem(self.url)
            content: bytes = filesystem.cat_file(path)
            return content

    def open(self, parts: Sequence[tuple[int, bytes]] = ()) -> RemoteStream:
        """The file for random access; `parts` are offsets and bytes of it that are here already."""
        return RemoteStream(self, self._length(), parts)

    def _length(self) -> int:
        if self.size is not None:
            return self.size
        with reaching(self.url):
            filesystem, path = _filesystem(self.url)
            size: int | None = filesystem.info(path)["size"]
        if size is None:
            raise StoreError(f"{self.url}: the store does not say how large it is, so parts cannot be read")
        return size


class RemoteStream(io.RawIOBase):
    """A file of a store for random access: each read of what is not here yet is one request for just that."""

    def __init__(self, file: RemoteFile, size: int, parts: Sequence[tuple[int, bytes]]) -> None:
        self._file, self._size, self._at = file, size, 0
        self._parts = sorted(parts, key=lambda part: part[0])
        self._starts = [start for start, _ in self._parts]

    def readable(self) -> bool:  # noqa: D102
        return True

    def seekable(self) -> bool:  # noqa: D102
        return True

    def tell(self) -> int:  # noqa: D102
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:  # noqa: D102
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def read(self, size: int | None = -1) -> bytes:  # noqa: D102
        stop = self._size if size is None or size < 0 else min(self._at + size, self._size)
        data = self._between(self._at, stop) if stop > self._at else b""
        self._at += len(data)
        return data

    def _between(self, start: int, stop: int) -> bytes:
        number = bisect_right(self._starts, start) - 1
        if number >= 0:
            first, data = self._parts[number]
            if stop <= first + len(data):
                return data[start - first : stop - first]
        return read_ranges([self._file], [(start, stop)])[0]


def is_url(text: str) -> bool:
    """Whether text names a place by URL, such as s3://bucket/folder, or several chained by ::."""
    return _URL.match(text) is not None


def place(text: str) -> Path | RemoteFile:
    """The place that text names: on disk, by a path or a file:// URL, or in a store, by any other URL.

    Raises:
        ValueError: the text is empty, or a file:// URL of another machine.
    """
    if not text:  # an unset variable in a script, say: not the folder at hand
        raise ValueError("the data have no name: give a folder, a file or a URL ('.' is the folder at hand)")
    if text.lower().startswith("file://"):
        parts = urlsplit(text)
        if parts.netloc.lower() not in ("", "localhost") or not parts.path:
            raise ValueError(f"{text}: files are on this machine: file:///folder, with three slashes")
        return Path(unquote(parts.path))
    return RemoteFile(text) if is_url(text) else at_home(text)


def find_files(url: str, suffix: str) -> list[RemoteFile]:
    """The file that a URL names, or those that it matches (`*`), or those of a folder (or data/ in it); by name.

    Args:
        url: of a store; a web address without a known suffix, or with / at its end, is a folder that lists links.
        suffix: of the files that are looked for in folders; there may be none.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: an unknown protocol, or one whose package is not installed.
        StoreError: the store cannot be reached, or refuses.
    """
    filesystem, path = _filesystem(url)
    with reaching(url):
        if _MAGIC.search(url):
            found = _listed(filesystem, _fixed_part(url), filesystem.glob(path, detail=True).values())
            if not found:
                raise FileNotFoundError(url)
            return found
        if _is_web(url):
            is_folder, size = url.endswith("/") or not RemoteFile(url).suffix, None
        else:
            about = filesystem.info(path)
            is_folder, size = about["type"] == "directory", about.get("size")
        if not is_folder:
            return [RemoteFile(url, size)]
        for folder in (url.rstrip("/"), f"{url.rstrip('/')}/data"):
            try:
                entries = filesystem.ls(url_to_fs(folder)[1] + ("/" if _is_web(url) else ""), detail=True)
            except FileNotFoundError:
                continue
            if found := [file for file in _listed(filesystem, folder, entries) if file.suffix == suffix]:
                return found
    return []


def walk_files(folder: RemoteFile) -> list[str]:
    """All files below a folder, by their names relative to it, in order; hidden ones are left out."""
    with reaching(folder.url):
        filesystem, path = _filesystem(folder.url)
        names = [name[len(path.rstrip("/")) :].lstrip("/") for name in filesystem.find(path)]
    return sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))


def read_ranges(files: Sequence[RemoteFile], ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes from start to stop of each file, asked for all at once.

    Raises:
        FileNotFoundError: a file is gone.
        StoreError: anything else that goes wrong, or a store that does not give parts of files.
    """
    if not files:
        return []
    with reaching(files[0].url):
        places = [_filesystem(file.url) for file in files]
        starts, stops = ([pair[side] for pair in ranges] for side in (0, 1))
        paths = [path for _, path in places]
        contents: list[Any] = places[0][0].cat_ranges(paths, starts, stops, on_error="return")
    for file, (start, stop), content in zip(files, ranges, contents, strict=True):
        with reaching(file.url):
            if isinstance(content, Exception):
                raise content
        if len(content) != stop - start:
            raise StoreError(
                f"{file}: the store gave {len(content)} bytes of it where {stop - start} were asked for"
            )
    return contents


def read_parts(file: RemoteFile, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, bytes]]:
    """Offsets and bytes that cover all the ranges of a file, neighbours read as one."""
    if not ranges:
        return []
    starts, stops = ([pair[side] for pair in ranges] for side in (0, 1))
    _, starts, merged = merge_offset_ranges([file.url] * len(ranges), starts, stops, max_gap=_GAP)
    pairs = [(start, int(stop or 0)) for start, stop in zip(starts, merged, strict=True)]
    return list(zip(starts, read_ranges([file] * len(pairs), pairs), strict=True))


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Whatever a store's package raises, as StoreError with the URL; FileNotFoundError stays, with the URL."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:  # boto's, Google's and aiohttp's have no kind in common
        reason: BaseException = error
        if isinstance(error, FileNotFoundError):
            # fsspec calls a web page missing whatever is wrong, and says the true reason only as the cause.
            cause = error.__cause__ if _is_web(url) else None
            if cause is None or getattr(cause, "status", None) in (404, 410):
                raise FileNotFoundError(errno.ENOENT, "no such file or folder", url) from error
            reason = cause
        text = " ".join(str(reason).split()) or type(reason).__name__
        text = f"permission denied: {text}" if isinstance(reason, PermissionError) else text
        raise StoreError(f"{url}: {text}") from error


def _filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """A URL's file system, made anew in each process, and its path there."""
    try:
        filesystem, path = url_to_fs(url)
    except (
        ImportError,
        ValueError,
    ) as error:  # a package that is not installed, or nobody knows the protocol
        raise ValueError(f"{url}: {' '.join(str(error).split())}") from error
    return filesystem, path


def _listed(filesystem: AbstractFileSystem, folder: str, entries: Any) -> list[RemoteFile]:
    """The files among a listing's entries, hidden ones left out, named as the user has named their folder."""
    root = url_to_fs(folder)[1].rstrip("/")
    found = []
    for entry in entries:
        inside = entry["name"].rstrip("/")[len(root) :].lstrip("/")
        if entry["type"] == "file" and inside and not inside.rpartition("/")[2].startswith("."):
            found.append(RemoteFile(f"{folder}/{inside}", entry.get("size")))
    return sorted(found, key=lambda file: file.url)


def _fixed_part(pattern: str) -> str:
    """The folder before the first * of a pattern."""
    magic = _MAGIC.search(pattern)
    return pattern[: magic.start() if magic else None].rpartition("/")[0]


def _is_web(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))
