"""Damaged and malformed lists, parquet files and embeddings: read, or refused with one line that names the file.

A second or two each; PRISM_FUZZ_SECONDS=600 goes on for longer, with other inputs each time.
"""

import io
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prism_dml.data.embeddings import read_embeddings
from prism_dml.data.readers import read_table

SECONDS = float(os.environ.get("PRISM_FUZZ_SECONDS", 1.0))
SEED = time.time_ns() % 2**32 if "PRISM_FUZZ_SECONDS" in os.environ else 0
AT_LEAST = 30

LISTS = [
    b"path,label\na/1.jpg,tea\na/2.jpg,cup\n",
    b'path,label,clean_label,is_noisy,split\n"a,1.jpg",tea,,true,train\nb.jpg,cup,cup,false,test\n',
    "\ufeffpath\tlabel\tclean_label\r\nü.jpg\t1\t2\r\nb.jpg\t2\t2\r\n".encode(),
    b"split;path;label\ntrain;x.png;9\n\ntest;y.png;10\n",
    b"a/1.jpg,0\na/2.jpg,1\n",
    b'a 1.jpg 0\n"b.jpg" 12\n',
]
TOKENS = [
    b",", b"\t", b";", b'"', b"\n", b"\r", b"\r\n", b"\0", b" ", b"\xff", b"\xef\xbb\xbf", "\u2028".encode(), b"-1",
    b"path", b"label", b"clean_label", b"is_noisy", b"split", b"nan", b"../", b"9" * 5000, b"x" * 140_000,
]  # fmt: skip


def inputs() -> Iterator[tuple[Any, np.random.Generator]]:
    """Names of inputs, and generators to make them, until the time is up."""
    end = time.monotonic() + SECONDS
    number = 0
    while number < AT_LEAST or time.monotonic() < end:
        yield (SEED, number), np.random.default_rng((SEED, number))
        number += 1


def mutated(data: bytes, generator: np.random.Generator, tokens: list[bytes]) -> bytes:
    """Some bytes flipped, cut out, doubled, overwritten or put in."""
    for _ in range(generator.integers(1, 5)):
        start, end = sorted(generator.integers(0, len(data) + 1, 2).tolist())
        end = min(end, start + int(generator.choice([1, 8, len(data) + 1])))
        token = tokens[generator.integers(len(tokens))]
        part = data[start:end]
        flipped = bytes(byte ^ 1 << int(generator.integers(8)) for byte in part[:4]) + part[4:]
        replacement = [flipped, b"", part + part, generator.bytes(len(part)), token + part, token]
        data = data[:start] + replacement[generator.integers(len(replacement))] + data[end:]
    return data


def read_or_refuse(path: Path, name: Any) -> bool:
    """Whether it was read; each image then gives bytes, or an error that the decoder expects."""
    try:
        table = read_table(path)
    except ValueError as error:
        message = str(error)
        assert "\n" not in message and path.name in message and len(message) < 1000, f"{name}: {message}"
        return False
    except Exception as error:
        raise AssertionError(f"{name}: {type(error).__name__}") from error
    count = len(table)
    assert count > 0 and len(table.paths) == count and all(isinstance(p, str) for p in table.paths), name
    assert table.labels.min() >= 0 and table.labels.max() < table.num_classes, name
    assert len(set(table.classes)) == len(table.classes), name
    for i in range(min(count, 5)):
        try:
            assert isinstance(table.images.read(i), bytes), name
        except (ValueError, OSError):
            pass
        except Exception as error:
            raise AssertionError(f"{name}, image {i}: {type(error).__name__}") from error
    return True


def test_lists(tmp_path: Path) -> None:
    outcomes = set()
    for name, generator in inputs():
        path = tmp_path / ("list.csv", "list.txt")[generator.integers(2)]
        path.write_bytes(mutated(LISTS[generator.integers(len(LISTS))], generator, TOKENS))
        outcomes.add(read_or_refuse(path, name))
    assert outcomes == {True, False}, "neither all is refused nor nothing"


def encoded(table: pa.Table, **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


def test_damaged_parquet(tmp_path: Path) -> None:
    images = [{"bytes": bytes([i] * 20), "path": f"{i}.png"} for i in range(6)]
    hub = b'{"info": {"features": {"label": {"names": ["cup", "tea"], "_type": "ClassLabel"}}}}'
    numbered = pa.table({"image": images, "label": [0, 1, 1, 0, 1, 0]}).replace_schema_metadata(
        {"huggingface": hub}
    )
    named = pa.table({
        "image": images, "label": ["a", "b"] * 3, "clean_label": [None, "b"] * 3, "is_noisy": [True, False] * 3,
        "split": ["train"] * 6,
    })  # fmt: skip
    whole = [
        encoded(numbered, row_group_size=2),
        encoded(named),
        encoded(named, compression="none", use_dictionary=False),
    ]
    outcomes = set()
    for name, generator in inputs():
        path = tmp_path / "data.parquet"
        data = whole[generator.integers(len(whole))]
        path.write_bytes(mutated(data, generator, [b"PAR1", b"\0" * 8, b"\xff" * 8, b"{", b'"names"']))
        outcomes.add(read_or_refuse(path, name))
    assert outcomes == {True, False}


HUB = [
    b"{}", b"[]", b"null", b"{", b"\xff", b'{"info": null}', b'{"info": {"features": []}}',
    b'{"info": {"features": {"label": null}}}', b'{"info": {"features": {"label": {"_type": "ClassLabel"}}}}',
    b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": "ab"}}}}',
    b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": [1, null]}}}}',
    b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": {"a": 1}}}}}',
    b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": ["cup", "tea"]}}}}',
    b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": ["cup", "cup"]}}}}',
]  # fmt: skip


def column(generator: np.random.Generator, kinds: list[list[Any]], rows: int) -> Any:
    """Values of one kind, some of them missing."""
    kind = kinds[generator.integers(len(kinds))]
    return [kind[generator.integers(len(kind))] for _ in range(rows)]


def test_malformed_parquet(tmp_path: Path) -> None:
    """Whole files with columns, types, values and metadata that nobody promised."""
    struct = {"bytes": b"x", "path": "a.png"}
    images = [
        [struct],
        [struct, {"bytes": None, "path": None}, None],
        [{"bytes": b"x"}],
        [{"path": "a"}],
        [b"x"],
    ]
    images += [
        [{"bytes": "text", "path": 3}],
        [{"bytes": [1], "path": b"a"}],
        [None],
        [{"path": "../a", "bytes": None}],
    ]
    labels = [
        ["a", "b"],
        [0, 1],
        [0, -1, 2**62],
        ["", " ", "a"],
        [None, "a"],
        [0.5],
        [b"a"],
        [True],
        [None],
        [["a"]],
    ]
    others = {
        "clean_label": labels,
        "is_noisy": [[True, False], [None, True], [1], ["true"]],
        "split": labels,
    }
    outcomes = set()
    for name, generator in inputs():
        rows = int(generator.choice([0, 1, 2, 5]))
        columns = {"image": column(generator, images, rows), "label": column(generator, labels[:4], rows)}
        if generator.random() < 0.5:
            columns["label"] = column(generator, labels, rows)
        columns |= {
            key: column(generator, kinds, rows) for key, kinds in others.items() if generator.random() < 0.3
        }
        table = pa.table(columns)
        if generator.random() < 0.2:
            table = table.drop_columns([["image", "label"][generator.integers(2)]])
        if generator.random() < 0.5:
            table = table.replace_schema_metadata({"huggingface": HUB[generator.integers(len(HUB))]})
        path = tmp_path / "data.parquet"
        path.write_bytes(encoded(table, row_group_size=2))
        outcomes.add(read_or_refuse(path, name))
    assert outcomes == {True, False}


def test_damaged_embeddings(tmp_path: Path) -> None:
    """What `prism embed` writes, damaged: vectors, or one line."""
    arrays = {
        "embeddings": np.ones((6, 4), np.float32),
        "labels": np.arange(6) % 2,
        "classes": np.array(["a", "b"]),
    }
    arrays["paths"] = np.array([f"{i}.png" for i in range(6)])
    wholes = []
    for save in (np.savez, np.savez_compressed):
        save(file := io.BytesIO(), **arrays)
        wholes.append((".npz", file.getvalue()))
    rows = {
        "path": arrays["paths"].tolist(),
        "label": ["a", "b"] * 3,
        "embedding": arrays["embeddings"].tolist(),
    }
    wholes.append((".parquet", encoded(pa.table(rows))))
    outcomes = set()
    for name, generator in inputs():
        suffix, data = wholes[generator.integers(len(wholes))]
        path = tmp_path / f"e{suffix}"
        path.write_bytes(
            mutated(
                data, generator, [b"PK\3\4", b"\0" * 8, b"\xff" * 8, b"{", b"\x93NUMPY", b"(9" + b"9" * 30]
            )
        )
        try:
            found = read_embeddings(path)
        except ValueError as error:
            message = str(error)
            assert "\n" not in message and path.name in message and len(message) < 1000, f"{name}: {message}"
            outcomes.add(False)
        except Exception as error:
            raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error
        else:
            assert len(found.vectors) == len(found.labels) == len(found.paths) > 0, name
            assert found.vectors.dtype == np.float32 and np.isfinite(found.vectors).all(), name
            outcomes.add(True)
    assert outcomes == {True, False}


@pytest.mark.parametrize("content", LISTS)
def test_the_lists_themselves_are_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "list.csv").write_bytes(content)
    assert read_or_refuse(tmp_path / "list.csv", content)
