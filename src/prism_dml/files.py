"""Files that are replaced whole, and folders that one process holds; below all rooms."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger("prism_dml")

LOCK = ".lock"
"""In a folder that is held, and left there: removed, one process could lock it and the next make it anew."""


@contextmanager
def replacing(path: Path, mark: str = "") -> Iterator[Path]:
    """A file beside `path` to write to; it takes the place of `path` in one instant, or is removed after an error.

    Its folder is made. One that a killed process has left is overwritten. A link stays, and what it leads to is
    replaced. OSError, one line, if there is no room or right to write, or a pipe or a device is there. `mark` tells
    apart processes that may write the same file at the same time.
    """
    with _beside(path, mark) as (target, temporary):
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)


def refuse_unwritable(path: Path, make_folder: bool = False) -> None:
    """OSError, as of `replacing`, if `path` cannot be written: asked before hours of work for what is to stand there.

    What is there stays; nothing is left, but its folder if that is to be made.
    """
    missing = [folder for folder in path.parents if not folder.exists()]
    with _beside(path, f"{os.getpid()}.probe") as (_, temporary):
        temporary.touch()
    if not make_folder:
        with suppress(OSError):  # another process may have begun there
            for folder in missing:
                folder.rmdir()


@contextmanager
def _beside(path: Path, mark: str) -> Iterator[tuple[Path, Path]]:
    """What `path` leads to, and a file beside it that is removed in the end; see `replacing`."""
    try:
        target = resolved(path) if path.is_symlink() else path
    except ValueError as error:
        raise OSError(f"{path} cannot be written: a link that leads to itself") from error
    temporary = target.with_name(f".{target.name}.{mark}.tmp" if mark else f".{target.name}.tmp")
    try:
        if target.is_dir():
            raise OSError("a folder is there")
        if target.exists() and not target.is_file():
            raise OSError("a pipe or a device is there")
        if target.parent.exists() and not target.parent.is_dir():
            raise OSError(f"{target.parent} is no folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        yield target, temporary
    except OSError as error:
        before = "; what was there before is whole" if path.is_file() else ""
        reason = " ".join((error.strerror or str(error)).split())
        raise OSError(f"{path} cannot be written: {reason}{before}") from error
    finally:
        with suppress(OSError):  # its folder may be a file; what went wrong is said above
            temporary.unlink(missing_ok=True)


@contextmanager
def held(folder: Path, who: str, wait: float = 0.0) -> Iterator[None]:
    """Keep others out of a folder, for whom the system makes room however this process ends.

    Args:
        folder: it is there.
        who: may be there already, in words.
        wait: seconds for them to go.

    Raises:
        ValueError: they are still there.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        raise ValueError(
            f"{who} is at work in {folder} and holds its {LOCK}: wait for it, or take another folder"
        ) from None
    except (OSError, RuntimeError) as error:  # a file system without locks, of which a cluster may have one
        logger.warning(
            "%s cannot be locked: let nothing else write to %s (%s)", lock.lock_file, folder, error
        )
    try:
        yield
    finally:
        lock.release()


def resolved(path: Path) -> Path:
    """A path without links and dots; ValueError if a link leads to itself."""
    try:
        return path.resolve()
    except RuntimeError as error:  # Python below 3.13
        raise ValueError(f"{path}: a link that leads to itself") from error


def at_home(path: str | Path) -> Path:
    """A path with ~ and ~user written out; ValueError if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: no home folder is known for {Path(path).parts[0]}") from error
