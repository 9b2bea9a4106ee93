import json
import shutil

import numpy as np
import pytest
from PIL import Image

from prism_dml.models import Embedder, save


@pytest.fixture
def index(prism, run_folder, image_folder, tmp_path):
    status, shown, error = prism("index", run_folder, image_folder, "--out", tmp_path / "index")
    assert status == 0, error
    assert shown == f"{tmp_path / 'index'}: 28 images, embeddings of 6 numbers, flat index\n"
    return tmp_path / "index"


def test_an_image_finds_itself(prism, run_folder, image_folder, index, tmp_path):
    queries = (image_folder / "test" / "fork" / "3.png", image_folder / "train" / "café")
    sheet, out = tmp_path / "new" / "sheet.png", tmp_path / "found.json"
    options = ("--matches", 3, "--sheet", sheet, "--json", out)
    status, shown, error = prism("search", run_folder, index, *queries, *options)
    assert status == 0, error
    assert "test/fork/3.png" in shown
    found = json.loads(out.read_text())["queries"]
    assert len(found) == 7
    for answer in found:
        best = answer["matches"][0]
        assert answer["query"].endswith(best["path"])
        assert best["similarity"] == pytest.approx(1, abs=1e-4)
        assert len(answer["matches"]) == 3
    assert found[1]["matches"][0]["label"] == "café"
    with Image.open(sheet) as picture:
        assert picture.width > 400


def test_a_long_path_is_whole_where_output_is_no_terminal(prism, run_folder, image_folder, tmp_path):
    name = f"{'a long name ' * 12}.png"
    (tmp_path / "d" / "cup").mkdir(parents=True)
    (tmp_path / "d" / "cup" / name).write_bytes((image_folder / "test" / "fork" / "0.png").read_bytes())
    assert prism("index", run_folder, tmp_path / "d", "--out", tmp_path / "i")[0] == 0
    status, shown, _ = prism("search", run_folder, tmp_path / "i", image_folder / "test" / "fork" / "0.png")
    assert status == 0
    assert f"cup/{name} " in shown


def test_names_in_any_script_are_drawn_without_a_word(prism, run_folder, image_folder, tmp_path):
    for name in ("猫", "كلب"):
        (tmp_path / "d" / name).mkdir(parents=True)
        image = (image_folder / "test" / "fork" / "0.png").read_bytes()
        (tmp_path / "d" / name / f"{name}.png").write_bytes(image)
    assert prism("index", run_folder, tmp_path / "d", "--out", tmp_path / "i")[0] == 0
    sheet = tmp_path / "s.png"
    status, _, error = prism("search", run_folder, tmp_path / "i", tmp_path / "d", "--sheet", sheet)
    assert (status, error) == (0, "")
    assert sheet.is_file()


def test_json_on_standard_output_and_more_matches_than_images(prism, run_folder, image_folder, index):
    query = image_folder / "test" / "fork" / "3.png"
    status, shown, _ = prism("search", run_folder, index, query, "--matches", 100, "--json", "-")
    assert status == 0
    assert len(json.loads(shown)["queries"][0]["matches"]) == 28


@pytest.mark.parametrize("dim", [5, 6])
def test_another_model_is_refused(prism, image_folder, index, tmp_path, dim):
    other = tmp_path / "other"
    save(Embedder("small", dim, seed=1, image_size=16, backbone_options={"widths": [8, 8]}), other)
    status, _, error = prism("search", other, index, image_folder / "test")
    assert (status, error) == (
        2,
        f"prism: error: {index} was built with another model than {other}: search with that one, or build it anew\n",
    )


@pytest.mark.parametrize("name", ["e.npz", "e.parquet"])
def test_an_index_of_a_file_knows_the_model_that_filled_it(prism, run_folder, image_folder, tmp_path, name):
    assert prism("embed", run_folder, image_folder, "--out", tmp_path / name)[0] == 0
    assert prism("index", tmp_path / name, "--out", tmp_path / "i")[0] == 0
    query = image_folder / "test" / "fork" / "0.png"
    assert prism("search", run_folder, tmp_path / "i", query)[0] == 0
    other = tmp_path / "other"
    save(Embedder("small", 6, seed=1, image_size=16, backbone_options={"widths": [8, 8]}), other)
    status, _, error = prism("search", other, tmp_path / "i", query)
    assert status == 2 and "was built with another model" in error


def test_an_index_of_somebodys_embeddings_tells_no_model(prism, image_folder, tmp_path, caplog):
    np.savez(tmp_path / "e.npz", embeddings=np.eye(6), labels=list("abcdef"))
    assert prism("index", tmp_path / "e.npz", "--out", tmp_path / "i")[0] == 0
    for dim, refused in ((6, False), (5, True)):
        other = tmp_path / f"other {dim}"
        save(Embedder("small", dim, seed=1, image_size=16, backbone_options={"widths": [8, 8]}), other)
        caplog.clear()
        status, _, error = prism("search", other, tmp_path / "i", image_folder / "test")
        assert (status == 2) == refused
        assert f"{tmp_path / 'i'} does not tell what model it was built with" in caplog.text
    assert "embeddings of 6 numbers, the query of 5: it was built with another model" in error


def test_embeddings_are_indexed_with_the_data_that_they_are_of_only(
    prism, run_folder, image_folder, tmp_path
):
    assert prism("embed", run_folder, image_folder / "train", "--out", tmp_path / "e.npz")[0] == 0
    for data, message in (
        (tmp_path / "none", "no such file or folder"),
        (image_folder / "test", "is not in the data"),
    ):
        status, _, error = prism("index", tmp_path / "e.npz", data, "--out", tmp_path / "i")
        assert (status, error.count("\n")) == (2, 1)
        assert message in error and not (tmp_path / "i").exists()
    assert prism("index", tmp_path / "e.npz", image_folder / "train", "--out", tmp_path / "i")[0] == 0


@pytest.mark.parametrize("option", ["--sheet", "--json"])
@pytest.mark.parametrize("what", ["query", "index", "model"])
def test_nothing_that_is_read_is_written_over(prism, run_folder, image_folder, index, tmp_path, option, what):
    query = tmp_path / "query.png"
    shutil.copy(image_folder / "test" / "fork" / "3.png", query)
    read = {"query": query, "index": index / "index.json", "model": run_folder / "model" / "model.json"}[what]
    target = tmp_path / "link.png"
    target.symlink_to(read)
    before = read.read_bytes()
    status, _, error = prism("search", run_folder, index, query, option, target)
    assert (status, error) == (
        2,
        f"prism: error: {target}: it is the input, which is never overwritten; choose another name\n",
    )
    assert read.read_bytes() == before


def test_an_index_needs_a_model_or_embeddings_with_labels(prism, image_folder, tmp_path):
    np.save(tmp_path / "e.npy", np.eye(4))
    for data in ((), (image_folder,)):
        status, _, error = prism("index", tmp_path / "e.npy", *data, "--out", tmp_path / "i")
        assert (status, error.count("\n")) == (2, 1)
        assert "e.npy: embeddings must be .npz or .parquet, with their labels" in error


def test_a_sheet_needs_the_indexed_data(prism, run_folder, image_folder, tmp_path):
    (tmp_path / "d" / "a").mkdir(parents=True)
    image = (image_folder / "test" / "fork" / "0.png").read_bytes()
    for name in ("0.png", "1.png"):
        (tmp_path / "d" / "a" / name).write_bytes(image)
    prism("index", run_folder, tmp_path / "d", "--out", tmp_path / "i")
    (tmp_path / "d" / "a" / "0.png").unlink()
    options = ("--sheet", tmp_path / "s.png")
    status, _, error = prism("search", run_folder, tmp_path / "i", tmp_path / "d", *options)
    assert status == 2
    assert "has changed since it was indexed: 'a/0.png' is not in it" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{run}", "{run}", "{image}"), "no index in"),
        (("{run}", "{index}", "{run}/none.png"), "no such file or folder"),
        (("{run}", "{index}", "{run}"), "no images in this folder"),
        (("{run}", "{index}", "{image}", "--matches", "0"), "--matches must be at least 1"),
        (("{run}", "{index}", "{image}", "--sheet", "s.jpg"), "--sheet must end in .png, not 's.jpg'"),
        (("{run}", "{index}"), "missing: QUERY"),
    ],
)
def test_mistakes_are_one_line(prism, run_folder, image_folder, index, arguments, message):
    places = {"run": run_folder, "index": index, "image": image_folder / "test" / "fork" / "0.png"}
    status, _, error = prism("search", *[argument.format(**places) for argument in arguments])
    assert status == 2
    assert message in error
    assert error.count("\n") == 1


def test_kind_is_said_and_can_be_chosen(prism, run_folder, image_folder, tmp_path):
    options = ("--out", tmp_path / "i", "--json", "--kind")
    status, shown, _ = prism("index", run_folder, image_folder, *options, "hnsw")
    assert (status, json.loads(shown)["kind"]) == (0, "hnsw")
    status, _, error = prism("index", run_folder, image_folder, *options, "ivf-pq")
    assert status == 2
    assert "needs at least 256 embeddings, not 28: choose flat" in error


def test_hidden_images_of_a_folder_are_no_queries(prism, run_folder, image_folder, index, tmp_path):
    shutil.copytree(image_folder / "test" / "fork", tmp_path / "queries")
    (tmp_path / "queries" / "._0.png").write_bytes(b"what a Mac leaves")
    status, shown, error = prism("search", run_folder, index, tmp_path / "queries", "--json", "-")
    assert status == 0, error
    assert len(json.loads(shown)["queries"]) == 5
