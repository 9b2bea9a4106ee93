"""FAISS indexes of embeddings: flat, HNSW or IVF-PQ, saved as a folder; never pickle."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from prism_dml.files import replacing
from prism_dml.retrieval.neighbours import unit_rows

logger = logging.getLogger("prism_dml")

IndexKind = Literal["flat", "hnsw", "ivf-pq"]

FLAT_UP_TO = 50_000
"""Embeddings up to which "auto" is flat: exact, a search takes milliseconds."""
HNSW_UP_TO = 2_000_000
"""Up to which "auto" is HNSW: nearly exact, all embeddings in memory; above it IVF-PQ, about 64 bytes each."""
HNSW_LINKS = 32
"""Neighbours that each embedding is linked to."""
MOST_COPIES = 2 * HNSW_LINKS
"""Embeddings that may be the same in an HNSW index: so many links one has."""
HNSW_BREADTH = 128
"""Candidates looked at, in building and in searching."""
PQ_BITS = 8
"""Of the code of each piece of an embedding."""
PQ_LEAST = 1 << PQ_BITS
"""So many embeddings are the fewest that codes can be learned from."""
PQ_PIECES = 64
"""Pieces that an embedding is cut into, at most: bytes that each takes."""
PQ_FEWEST_PIECES = 32
"""A longer embedding that cannot be cut into at least so many equal pieces gets zeros at its end, to be cut."""
IVF_SEARCHED = 1 / 16
"""Share of the lists that a search looks into, at least 8."""
_HASHED = 16_384  # rows at a time
_FORMAT = "prism-dml index"
_VERSION = 1
_CARD = "index.json"
_FILE = re.compile(r"index-[0-9a-f]{12}\.faiss|rows-[0-9a-f]{12}\.parquet")


@dataclass(frozen=True, eq=False)
class EmbeddingIndex:
    """N embeddings, to search in by cosine similarity."""

    kind: IndexKind
    faiss_index: Any

    def __len__(self) -> int:
        return int(self.faiss_index.ntotal)

    @property
    def embedding_dim(self) -> int:
        """How many numbers an embedding has."""
        return int(self.faiss_index.d)

    def search(
        self, query: Tensor | NDArray[np.floating[Any]], k: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k most similar embeddings to each query; exact for flat.

        Args:
            query: (Q, D), brought to unit length.
            k: in [1, N].

        Returns:
            Cosine similarities (Q, k), not increasing along a row, approximate for IVF-PQ; and numbers (Q, k), -1
            where HNSW or IVF-PQ found fewer than k.

        Raises:
            ValueError: another number of dimensions, values that are not finite, or k out of range.
        """
        rows = unit_rows(query, "query")
        if rows.shape[1] != self.embedding_dim:
            raise ValueError(
                f"the index has embeddings of {self.embedding_dim} numbers, the query of {rows.shape[1]}: it was "
                "built with another model"
            )
        if not 1 <= k <= len(self):
            raise ValueError(
                f"k must be from 1 to {len(self)}, the number of embeddings in the index, got {k}"
            )
        similarities, numbers = self.faiss_index.search(_plain(rows), k)
        return similarities, numbers


def choose_kind(count: int) -> IndexKind:
    """The kind of index for so many embeddings."""
    return "flat" if count <= FLAT_UP_TO else "hnsw" if count <= HNSW_UP_TO else "ivf-pq"


def build_index(
    embeddings: Tensor | NDArray[np.floating[Any]], kind: IndexKind | Literal["auto"] = "auto"
) -> EmbeddingIndex:
    """An index of embeddings.

    Args:
        embeddings: (N, D), N >= 1, brought to unit length.
        kind: "auto": see `choose_kind`; flat in place of HNSW where too many are the same, whose links to each other
            leave none to the rest.

    Raises:
        ValueError: no embeddings, values that are not finite, an unknown kind, or too few for IVF-PQ.

    Source: HNSW: Malkov and Yashunin (2018); product quantisation: Jegou et al. (2011).
    """
    rows = _plain(unit_rows(embeddings, "embeddings"))
    count, dim = rows.shape
    if count == 0 or dim == 0:
        raise ValueError("there are no embeddings to index")
    chosen = choose_kind(count) if kind == "auto" else kind
    if chosen == "hnsw" and (copies := _most_copies(rows)) > MOST_COPIES:
        if kind == "auto":
            chosen = "flat"
        else:
            logger.warning("%d embeddings are the same: hnsw may not find others; flat does", copies)
    if chosen == "flat":
        index: Any = faiss.IndexFlatIP(dim)
    elif chosen == "hnsw":
        index = faiss.IndexHNSWFlat(dim, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = index.hnsw.efSearch = HNSW_BREADTH
    elif chosen == "ivf-pq":
        index = _ivf_pq(rows)
    else:
        raise ValueError(f"unknown kind of index '{kind}': choose one of auto, flat, hnsw, ivf-pq")
    index.add(rows)
    return EmbeddingIndex(chosen, index)


def _most_copies(rows: NDArray[np.float32]) -> int:
    """How often the most frequent of (N, D) rows occurs. O(N.D) time."""
    bits = rows.view(np.uint32)
    factors = np.random.default_rng(0).integers(2**63, size=rows.shape[1], dtype=np.uint64) * 2 + 1
    hashes = [(bits[start : start + _HASHED] * factors).sum(axis=1) for start in range(0, len(bits), _HASHED)]
    return int(np.unique(np.concatenate(hashes), return_counts=True)[1].max())


def save_index(index: EmbeddingIndex, rows: pd.DataFrame, folder: Path, about: dict[str, Any]) -> None:
    """Write an index into a folder, made if missing; the index that is there is replaced at the end.

    Args:
        index: N embeddings.
        rows: what is known of each, N rows, written as parquet.
        folder: gets index.json and the two files that it names: of FAISS, and parquet.
        about: JSON-able, read again by `load_index`.

    Raises:
        ValueError: there are not N rows. OSError: the folder cannot be written.
    """
    if len(rows) != len(index):
        raise ValueError(f"{len(rows)} rows for an index of {len(index)} embeddings")
    folder.mkdir(parents=True, exist_ok=True)
    content = faiss.serialize_index(index.faiss_index).tobytes()
    table = rows.to_parquet(index=False)
    # Named by content: the old index stays whole until the new card is in place.
    digests = {"faiss": hashlib.sha256(content).hexdigest(), "rows": hashlib.sha256(table).hexdigest()}
    names = {"faiss": f"index-{digests['faiss'][:12]}.faiss", "rows": f"rows-{digests['rows'][:12]}.parquet"}
    card = {"format": _FORMAT, "format_version": _VERSION, "kind": index.kind, "embeddings": len(index)}
    card |= {"embedding_dim": index.embedding_dim, "files": names, "sha256": digests, "about": about}
    _write(folder / names["faiss"], content)
    _write(folder / names["rows"], table)
    _write(folder / _CARD, (json.dumps(card, indent=2) + "\n").encode())
    for old in list(folder.iterdir()):
        if _FILE.fullmatch(old.name) and old.name not in names.values():
            old.unlink()


def holds_index(folder: Path) -> bool:
    """Whether an index, of whatever version, was written into a folder, or at least begun there."""
    try:
        card = json.loads((folder / _CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        card = None
    is_whole = isinstance(card, dict) and card.get("format") == _FORMAT
    return is_whole or any(_FILE.fullmatch(file.name) for file in folder.glob("*"))


def load_index(folder: Path) -> tuple[EmbeddingIndex, pd.DataFrame, dict[str, Any]]:
    """The index, its rows, and what `about` was; ValueError, one line, if there is none or it is damaged."""
    card = _read_card(folder / _CARD)
    parts: dict[str, bytes] = {}
    for part in ("faiss", "rows"):
        file = folder / Path(str(card["files"].get(part))).name
        try:
            parts[part] = file.read_bytes()
        except OSError as error:
            raise ValueError(f"{file}: cannot be read: {error.strerror or error}") from error
        if hashlib.sha256(parts[part]).hexdigest() != card["sha256"].get(part):
            raise ValueError(f"{file}: damaged: its checksum is not that of {_CARD}")
    try:
        index = faiss.deserialize_index(np.frombuffer(parts["faiss"], dtype=np.uint8))
        rows = pd.read_parquet(io.BytesIO(parts["rows"]))
    except Exception as error:  # FAISS, arrow and pandas have no kind of error in common
        raise ValueError(f"{folder}: not a readable index: {str(error).partition(chr(10))[0]}") from error
    if index.ntotal != len(rows):
        raise ValueError(f"{folder}: damaged: {index.ntotal} embeddings, but {len(rows)} rows")
    return EmbeddingIndex(card["kind"], index), rows, card["about"]


def _ivf_pq(rows: NDArray[np.float32]) -> Any:
    """A trained, empty IVF-PQ index for so many embeddings."""
    count, dim = rows.shape
    if count < PQ_LEAST:
        raise ValueError(f"an ivf-pq index needs at least {PQ_LEAST} embeddings, not {count}: choose flat")
    lists = max(1, min(int(4 * count**0.5), count // 39))  # 39: what FAISS wants to learn each from
    padded = next(d for d in itertools.count(dim) if _pieces(d) >= min(dim, PQ_FEWEST_PIECES))
    inner = faiss.IndexIVFPQ(
        *(faiss.IndexFlatIP(padded), padded, lists, _pieces(padded), PQ_BITS, faiss.METRIC_INNER_PRODUCT)
    )
    inner.cp.min_points_per_centroid = inner.pq.cp.min_points_per_centroid = 1  # no warning on small data
    inner.nprobe = max(8, round(lists * IVF_SEARCHED))
    index: Any = inner
    if padded > dim:
        uniform: Any = False  # zeros go to the end; the stubs of FAISS know the other constructor only
        index = faiss.IndexPreTransform(faiss.RemapDimensionsTransform(dim, padded, uniform), inner)
    index.train(rows)
    return index


def _pieces(dim: int) -> int:
    """The most equal pieces that so many numbers can be cut into."""
    return max(p for p in range(1, min(PQ_PIECES, dim) + 1) if dim % p == 0)


def _plain(rows: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(rows.cpu().numpy(), dtype=np.float32)


def _read_card(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"no index in {path.parent}: {_CARD} is not there")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    if not isinstance(card, dict) or card.get("format") != _FORMAT:
        raise ValueError(f"{path}: not the description of a Prism index")
    if card.get("format_version") != _VERSION:
        raise ValueError(
            f"{path}: format version {card.get('format_version')}; this version of Prism reads {_VERSION}"
        )
    wanted = {"kind": str, "files": dict, "sha256": dict, "about": dict}
    if not all(isinstance(card.get(name), type_) for name, type_ in wanted.items()):
        raise ValueError(f"{path}: damaged: kind, files, sha256 or about is missing")
    return card


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)
