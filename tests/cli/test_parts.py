"""`prism embed` into a folder: killed, restarted, shared by processes, and never half a part."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from prism_dml.data import read_embeddings
from prism_dml.models import Embedder, save

PARTS = ("--rows-per-part", 4, "--batch-size", 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save(Embedder("small", 6, image_size=16, backbone_options={"widths": [8, 8]}), folder / "model")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """42 images of two classes as parquet."""
    return write_data(tmp_path_factory.mktemp("data") / "d.parquet", 42)


def write_data(file, count, unreadable=()):
    generator, images = np.random.default_rng(0), []
    for i in range(count):
        stream = io.BytesIO()
        Image.fromarray(generator.integers(0, 255, (20, 20, 3)).astype(np.uint8)).save(stream, "PNG")
        images.append({"bytes": b"nothing" if i in unreadable else stream.getvalue(), "path": f"{i}.png"})
    rows = pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pq.write_table(pa.table({"image": rows, "label": ["a", "b"] * (count // 2)}), file, row_group_size=5)
    return file


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def start(*arguments):
    code = "import sys; from prism_dml.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "embed", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes)


@pytest.fixture
def whole(prism, model, data, tmp_path):
    """The folder of a job that was never stopped."""
    out = tmp_path / "whole"
    status, shown, error = prism("embed", model, data, "--out", out, *PARTS)
    assert (status, shown, error) == (0, f"42 embeddings of 6 numbers in {out} (11 of 11 parts)\n", "")
    return out


def test_parts_are_what_a_file_holds(prism, model, data, whole, tmp_path):
    assert prism("embed", model, data, "--out", tmp_path / "e.parquet")[0] == 0
    parts, file = read_embeddings(whole), read_embeddings(tmp_path / "e.parquet")
    assert (parts.paths, parts.labels) == (file.paths, file.labels)
    assert np.allclose(parts.vectors, file.vectors, atol=1e-6)
    rows = pq.read_table(whole / "part-00010.parquet")
    assert rows.column("path").to_pylist() == ["40.png", "41.png"]
    about = json.loads((whole / "manifest.json").read_text())
    assert (about["rows"], about["rows_per_part"], about["parts"], about["embedding_dim"]) == (42, 4, 11, 6)
    assert {file.name for file in whole.iterdir()} == {
        "manifest.json",
        *(f"part-{k:05}.parquet" for k in range(11)),
    }


def test_killed_in_the_middle_and_started_again(prism, model, tmp_path):
    data = write_data(tmp_path / "d.parquet", 600)
    job = start(model, data, "--out", tmp_path / "cut", *PARTS)
    try:
        while not (tmp_path / "cut" / "part-00000.parquet").exists():
            assert job.poll() is None, job.communicate()
            time.sleep(0.001)
    finally:
        job.send_signal(signal.SIGKILL)
        job.communicate()
    before = contents(tmp_path / "cut")
    times = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "cut").glob("part-*.parquet")}
    assert job.returncode == -signal.SIGKILL and 1 <= len(times) < 150
    with pytest.raises(ValueError, match=r"part-\d+.parquet is not there: the job is not finished"):
        read_embeddings(tmp_path / "cut")
    assert prism("embed", model, data, "--out", tmp_path / "cut", *PARTS)[0] == 0
    assert prism("embed", model, data, "--out", tmp_path / "whole", *PARTS)[0] == 0
    after = contents(tmp_path / "cut")
    assert after == contents(tmp_path / "whole")
    assert {name: (tmp_path / "cut" / name).stat().st_mtime_ns for name in times} == times  # not made again
    assert all(after[name] == content for name, content in before.items() if not name.startswith("."))


def test_two_processes_equal_one(prism, model, data, whole, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        status, shown, _ = prism("embed", model, data, "--out", tmp_path / "two", *PARTS)
        assert status == 0 and bool(shown) == (rank == 0)
    assert contents(tmp_path / "two") == contents(whole)


def test_devices_start_processes(prism, model, data, whole, tmp_path):
    options = ("--out", tmp_path / "two", *PARTS, "--devices", 2, "--json")
    status, shown, error = prism("embed", model, data, *options)
    assert status == 0, error
    counts = {"images": 42, "embedding_dim": 6, "unreadable": 0, "parts": 11, "parts_of_job": 11}
    assert json.loads(shown) == {"out": str(tmp_path / "two"), **counts}
    assert contents(tmp_path / "two") == contents(whole)


def test_one_of_two_makes_its_parts_only(prism, model, data, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    status, shown, _ = prism("embed", model, data, "--out", tmp_path / "e", *PARTS)
    assert (status, shown) == (0, "")
    assert sorted(file.name for file in (tmp_path / "e").glob("part*")) == [
        f"part-{k:05}.parquet" for k in (1, 4, 7, 10)
    ]
    monkeypatch.setenv("RANK", "3")
    status, _, error = prism("embed", model, data, "--out", tmp_path / "e", *PARTS)
    assert status == 2 and "RANK must be below WORLD_SIZE" in error


def cut_short(content):
    return content[: len(content) // 2]


def flip_bits(content):
    """A bit in each 16th byte before the footer: where the embeddings lie differs with pyarrow's version."""
    size = int.from_bytes(content[-8:-4], "little")
    end = len(content) - 8 - size
    return bytes(byte ^ (at % 16 == 0 and 4 <= at < end) for at, byte in enumerate(content))


@pytest.mark.parametrize("damage", [cut_short, flip_bits, lambda _: b""])
def test_damaged_part_is_named_refused_and_made_anew(prism, model, data, whole, damage, caplog):
    before = contents(whole)
    file = whole / "part-00003.parquet"
    file.write_bytes(damage(file.read_bytes()))
    (whole / ".part-00003.parquet.elsewhere-1.tmp").write_bytes(b"half")  # of a process that was killed
    status, _, error = prism("audit", whole, "--out", whole.parent / "audit")
    assert status == 2 and error.count("\n") == 1
    assert f"{file} is damaged: " in error and "makes it anew" in error
    assert prism("embed", model, data, "--out", whole, *PARTS)[0] == 0
    assert any(f"{file} is damaged: " in line and "made anew" in line for line in caplog.messages)
    assert contents(whole) == before


def test_part_of_another_job_is_made_anew(prism, model, data, whole, caplog):
    before = contents(whole)
    (whole / "part-00001.parquet").write_bytes(before["part-00002.parquet"])
    with pytest.raises(ValueError, match=r"part-00001.parquet is not of this job"):
        read_embeddings(whole)
    assert prism("embed", model, data, "--out", whole, *PARTS)[0] == 0
    assert "is not of this job" in caplog.text
    assert contents(whole) == before


def test_another_job_in_the_folder_is_refused(prism, model, data, whole, tmp_path):
    before = contents(whole)

    def refused(*arguments):
        status, _, error = prism("embed", *arguments, "--out", whole)
        assert status == 2 and error.count("\n") == 1 and contents(whole) == before
        return error

    save(Embedder("small", 6, seed=1, image_size=16, backbone_options={"widths": [8, 8]}), tmp_path / "other")
    assert "holds embeddings of another model" in refused(tmp_path / "other", data, *PARTS)
    rows = pq.read_table(data)
    pq.write_table(rows.set_column(1, "label", pa.array(["b", "a"] * 21)), tmp_path / "relabelled.parquet")
    assert "of other data" in refused(model, tmp_path / "relabelled.parquet", *PARTS)
    pq.write_table(rows.slice(0, 40), tmp_path / "shorter.parquet")
    assert "of other data" in refused(model, tmp_path / "shorter.parquet", *PARTS)
    write_data(tmp_path / "d.parquet", 42, unreadable=[3])  # same names and labels, other bytes
    assert "of other data" in refused(model, tmp_path / "d.parquet", *PARTS)
    assert "in parts of another size" in refused(model, data, "--rows-per-part", 5)
    assert "the data has no splits" in refused(model, data, *PARTS, "--split", "test")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": "prism-dml index"}', '{"format": "prism-dml embeddings"}']
)
def test_damaged_manifest(prism, model, data, whole, text):
    (whole / "manifest.json").write_text(text)
    for command in (
        ("embed", model, data, "--out", whole, *PARTS),
        ("audit", whole, "--out", whole.parent / "a"),
    ):
        status, _, error = prism(*command)
        assert status == 2 and "manifest.json is no manifest of embeddings" in error


def test_unreadable_images_are_left_out_and_count_over_the_whole_job(prism, model, tmp_path, caplog):
    bad = (4, 5, 6, 7, 9)  # the second part has none
    data, out = write_data(tmp_path / "d.parquet", 42, bad), tmp_path / "e"
    command = ("embed", model, data, "--out", out, *PARTS)
    status, _, error = prism(*command, "--max-unreadable", 0.11)
    assert status == 2 and "5 of 42 images are unreadable, more than the share of 0.11" in error
    assert "a higher max_unreadable puts up with more" in error
    assert "'4.png'" in caplog.text
    assert prism(*command, "--max-unreadable", 0.11)[0] == 2  # nor do they slip through at the second start
    status, shown, _ = prism(*command, "--max-unreadable", 0.12)
    assert (status, shown) == (0, f"37 embeddings of 6 numbers in {out} (11 of 11 parts)\n")
    assert read_embeddings(out).paths == [f"{i}.png" for i in range(42) if i not in bad]
    assert pq.read_table(out / "part-00001.parquet").num_rows == 0
    assert prism(*command, "--max-unreadable", 0.11)[0] == 2


def test_audit_reads_parts(prism, data, whole, tmp_path):
    status, _, error = prism("audit", whole, data, "--out", tmp_path / "audit")
    assert status == 0, error
    assert (tmp_path / "audit" / "report.html").is_file()


def test_index_of_parts(prism, model, data, whole, tmp_path):
    status, shown, error = prism("index", whole, "--out", tmp_path / "i")
    assert status == 0, error
    assert shown == f"{tmp_path / 'i'}: 42 images, embeddings of 6 numbers, flat index\n"
    Image.new("RGB", (20, 20)).save(tmp_path / "q.png")
    search = ("search", model, tmp_path / "i", tmp_path / "q.png", "--sheet", tmp_path / "s.png")
    status, _, error = prism(*search)
    assert status == 2 and "--sheet needs one that was built with DATA" in error
    assert prism("index", whole, data, "--out", tmp_path / "i")[0] == 0
    assert prism(*search)[0] == 0 and (tmp_path / "s.png").is_file()
    status, _, error = prism("index", whole, "--out", tmp_path / "i", "--split", "test")
    assert status == 2 and "--split needs a model" in error
    status, _, error = prism("index", model, "--out", tmp_path / "i")
    assert status == 2 and "DATA is missing" in error


def test_a_full_disk_leaves_whole_parts(prism, model, data, tmp_path, monkeypatch):
    real, calls = pq.write_table, []

    def full(rows, where, **options):
        calls.append(where)
        if len(calls) == 3:
            where.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(rows, where, **options)

    monkeypatch.setattr(pq, "write_table", full)
    status, _, error = prism("embed", model, data, "--out", tmp_path / "e", *PARTS)
    assert status == 2 and "part-00002.parquet cannot be written: No space left on device" in error
    names = ["manifest.json", "part-00000.parquet", "part-00001.parquet"]
    assert sorted(file.name for file in (tmp_path / "e").iterdir()) == names


def test_ctrl_c_says_how_to_go_on(prism, model, data, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", interrupted)
    status, _, error = prism("embed", model, data, "--out", tmp_path / "e", *PARTS)
    assert (status, error) == (130, f"prism: stopped; the same command goes on with {tmp_path / 'e'}\n")
    assert [file.name for file in (tmp_path / "e").iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("command", ["embed", "index"])
def test_a_folder_of_other_things_stays_as_it_is(prism, data, tmp_path, command):
    photos = tmp_path / "photos"
    (photos / "a").mkdir(parents=True)
    status, _, error = prism(command, tmp_path / "no run", data, "--out", photos)  # refused before any work
    assert status == 2 and error.count("\n") == 1
    assert "--out must be a new or empty folder, or one with " in error and f"{photos} holds 'a'" in error
    assert [file.name for file in photos.iterdir()] == ["a"]


def test_an_empty_folder_is_taken(prism, model, data, tmp_path):
    for command in ("embed", "index"):
        (tmp_path / command).mkdir()
        (tmp_path / command / ".DS_Store").write_text("")
        assert prism(command, model, data, "--out", tmp_path / command)[0] == 0
        assert prism(command, model, data, "--out", tmp_path / command)[0] == 0


def test_embeddings_and_an_index_do_not_mix(prism, model, data, whole, tmp_path):
    before = contents(whole)
    status, _, error = prism("index", whole, "--out", whole)
    assert status == 2 and "or one with an index" in error and contents(whole) == before
    assert prism("index", whole, "--out", tmp_path / "i")[0] == 0
    status, _, error = prism("embed", model, data, "--out", tmp_path / "i")
    assert status == 2 and "or one with embeddings" in error


def test_the_index_of_parts_knows_their_model(prism, model, whole, tmp_path):
    assert prism("index", whole, "--out", tmp_path / "i")[0] == 0
    Image.new("RGB", (20, 20)).save(tmp_path / "q.png")
    assert prism("search", model, tmp_path / "i", tmp_path / "q.png")[0] == 0
    save(Embedder("small", 6, seed=1, image_size=16, backbone_options={"widths": [8, 8]}), tmp_path / "other")
    status, _, error = prism("search", tmp_path / "other", tmp_path / "i", tmp_path / "q.png")
    assert status == 2 and "was built with another model" in error


def test_options_that_do_not_fit(prism, model, data, tmp_path):
    (tmp_path / "file").write_text("")
    for options, message in (
        (("--out", tmp_path / "e", "--rows-per-part", 0), "rows of a part must be at least 1"),
        (("--out", tmp_path / "e", "--devices", 0), "--devices must be at least 1"),
        (("--out", tmp_path / "e", "--max-unreadable", 2), "max_unreadable must be in [0, 1]"),
        (("--out", tmp_path / "e", "--batch-size", 0), "the batch size must be at least 1"),
        (("--out", tmp_path / "e.npz", "--devices", 2), "--out must be a folder"),
        (("--out", tmp_path / "file"), "or be a folder"),
    ):
        status, _, error = prism("embed", model, data, *options)
        assert status == 2 and message in error, error


def test_an_image_that_can_be_read_by_now_is_not_left_out_for_ever(prism, model, tmp_path, caplog):
    for name in ("a", "b"):
        (tmp_path / "d" / name).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (20, 20), (40 * i, 9, ord(name))).save(tmp_path / "d" / name / f"{i}.png")
    bad = [tmp_path / "d" / "a" / "5.png", tmp_path / "d" / "b" / "4.png"]
    whole = [file.read_bytes() for file in bad]
    for file in bad:
        file.write_bytes(b"")
    command = ("embed", model, tmp_path / "d", "--out", tmp_path / "e", *PARTS, "--max-unreadable", 0.5)
    assert prism(*command)[1].startswith("10 embeddings")
    first = (tmp_path / "e" / "part-00000.parquet").stat().st_mtime_ns
    caplog.clear()
    assert prism(*command)[1].startswith("10 embeddings")
    assert "'a/5.png'" in caplog.text and "'b/4.png'" in caplog.text  # named as at first
    bad[0].write_bytes(whole[0])
    assert prism(*command)[1].startswith("11 embeddings")
    bad[1].write_bytes(whole[1])
    assert prism(*command[:-2])[1].startswith("12 embeddings")
    assert prism("embed", model, tmp_path / "d", "--out", tmp_path / "new", *PARTS)[0] == 0
    assert contents(tmp_path / "e") == contents(tmp_path / "new")
    assert (tmp_path / "e" / "part-00000.parquet").stat().st_mtime_ns == first  # that one had all
