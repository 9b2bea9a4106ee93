import numpy as np
import pyarrow as pa
import pytest

from prism_dml.data.parts import (
    DamagedPart,
    Job,
    open_job,
    part_file,
    read_part,
    read_parts,
    read_unreadable,
    rows_by_batch,
    write_part,
)

JOB = Job("model", "data", None, embedding_dim=3, rows=5, rows_per_part=4)


def rows(count):
    flat = pa.array(np.random.default_rng(0).random(3 * count).astype(np.float32))
    paths = [f"{i}.png" for i in range(count)]
    return pa.table(
        {"path": paths, "label": ["a"] * count, "embedding": pa.FixedSizeListArray.from_arrays(flat, 3)}
    )


def test_parts_come_back_in_order(tmp_path):
    open_job(tmp_path, JOB)
    write_part(tmp_path, JOB, 1, rows(1), [])
    write_part(tmp_path, JOB, 0, rows(3), [2])
    assert read_parts(tmp_path).to_pydict() == pa.concat_tables([rows(3), rows(1)]).to_pydict()
    assert read_unreadable(tmp_path, JOB, 0) == [2]


def test_a_part_of_an_earlier_version_with_shorter_offsets(tmp_path):
    open_job(tmp_path, JOB)
    write_part(tmp_path, JOB, 0, rows(4), [])
    now = rows(1).set_column(0, "path", pa.array(["4.png"], pa.large_string()))
    write_part(tmp_path, JOB, 1, now, [])
    assert read_parts(tmp_path)["path"].to_pylist() == ["0.png", "1.png", "2.png", "3.png", "4.png"]


def test_batches_do_not_reach_into_another_part():
    found = [[batch.tolist() for batch in rows_by_batch(JOB, part, 3)] for part in range(JOB.num_parts)]
    assert found == [[[0, 1, 2], [3]], [[4]]]


def test_no_bit_of_what_is_read_is_another(tmp_path):
    open_job(tmp_path, JOB)
    write_part(tmp_path, JOB, 1, rows(1), [])
    file = part_file(tmp_path, 1)
    content, whole, damaged = file.read_bytes(), read_part(tmp_path, JOB, 1), 0
    for i in range(0, len(content), 3):
        file.write_bytes(content[:i] + bytes([content[i] ^ (1 << i % 8)]) + content[i + 1 :])
        try:
            assert (
                read_part(tmp_path, JOB, 1).to_pydict() == whole.to_pydict()
            )  # of a statistic, for instance
        except DamagedPart as error:
            damaged += 1
            assert "\n" not in str(error) and str(file) in str(error)
    assert damaged > len(content) // 6


def test_part_that_is_not_there(tmp_path):
    open_job(tmp_path, JOB)
    with pytest.raises(FileNotFoundError):
        read_part(tmp_path, JOB, 0)
    with pytest.raises(ValueError, match=r"part-00000.parquet is not there: the job is not finished"):
        read_parts(tmp_path)
