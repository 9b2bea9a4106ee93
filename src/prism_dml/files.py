"""Files that are replaced whole; below all rooms."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path, mark: str = "") -> Iterator[Path]:
    """A file beside `path` to write to; it takes the place of `path` in one instant, or is removed after an error.

    Its folder is made. One that a killed process has left is overwritten. OSError, one line, if there is no room or
    right to write. `mark` tells apart processes that may write the same file at the same time.
    """
    temporary = path.with_name(f".{path.name}.{mark}.tmp" if mark else f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        before = "; what was there before is whole" if path.is_file() else ""
        reason = " ".join((error.strerror or str(error)).split())
        raise OSError(f"{path} cannot be written: {reason}{before}") from error
    finally:
        with suppress(OSError):  # its folder may be a file; what went wrong is said above
            temporary.unlink(missing_ok=True)
