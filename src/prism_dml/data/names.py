"""Text for millions of rows, held in columns instead of Python objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_BLOCK = 65_536
"""Rows that are Python objects at a time while all are walked through."""


class Names(Sequence[str]):
    """(N,) texts in Arrow's layout: each takes its own length and 8 bytes, a twentieth of a Python string at best.

    Args:
        column: of text, without nulls; its chunks are joined.
    """

    def __init__(self, column: pa.ChunkedArray | pa.Array) -> None:
        column = column.cast(pa.large_string())
        self._texts = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> Names: ...
    def __getitem__(self, i: int | slice) -> str | Names:
        if isinstance(i, slice):
            return self.take(np.arange(len(self))[i])
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        return str(self._texts[int(i)].as_py())

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _BLOCK):
            yield from self._texts.slice(start, _BLOCK).to_pylist()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Names):
            return bool(self._texts.equals(other._texts))
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Names({len(self)})"

    def __arrow_array__(self, type: pa.DataType | None = None) -> pa.Array:
        return self._texts if type is None else self._texts.cast(type)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self._texts.to_pylist(), dtype=dtype)

    def take(self, indices: NDArray[np.int64]) -> Names:
        """(M,) the texts at `indices`, in that order."""
        return Names(pc.take(self._texts, pa.array(indices)))


def take_names(names: Sequence[str], indices: NDArray[np.int64]) -> Sequence[str]:
    """The names at `indices`, in that order and in the layout that they have."""
    return names.take(indices) if isinstance(names, Names) else [names[i] for i in indices]
