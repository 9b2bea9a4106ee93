import functools
import hashlib
import http.server
import io
import os
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import Omniglot

from prism_dml.data.decode import read_image
from prism_dml.data.omniglot import omniglot_table


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (6, 6), value).save(file, "png")
    return file.getvalue()


class Handler(http.server.SimpleHTTPRequestHandler):
    asked: list[str]
    truncate = False

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        if not self.truncate:
            return super().do_GET()
        data = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])  # and the connection is closed
        return None

    def log_message(self, *_: object) -> None:
        """Keep the tests' output clean."""


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[Handler]]]:
    """Miniature zip files of the same layout behind a local server, and nothing else to read from."""
    folder = tmp_path / "served"
    folder.mkdir()
    sums = {}
    for name, alphabets in (("images_background", ("Greek", "Latin")), ("images_evaluation", ("ULOG",))):
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            archive.writestr(f"{name}/", b"")
            archive.writestr(f"__MACOSX/{name}/._x.png", b"no image")
            for i, alphabet in enumerate(alphabets):
                for character in (2, 1):
                    for drawer in (1, 2, 3):
                        member = f"{name}/{alphabet}/character{character:02}/0{character}_{drawer:02}.png"
                        archive.writestr(member, png(50 * i + 10 * character + drawer))
        sums[name] = hashlib.md5((folder / f"{name}.zip").read_bytes()).hexdigest()
    monkeypatch.setattr(Omniglot, "zips_md5", sums)
    monkeypatch.delenv("PRISM_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    handler = type("OwnHandler", (Handler,), {"asked": []})
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_download_once_into_the_cache_folder(served: tuple[str, type[Handler]], tmp_path: Path) -> None:
    url, handler = served
    table = omniglot_table(url=url)
    assert table.classes == [f"{a}/character0{c}" for a in ("Greek", "Latin", "ULOG") for c in (1, 2)]
    assert table.labels.tolist() == np.repeat(np.arange(6), 3).tolist()
    assert table.splits is not None and table.splits.tolist() == ["train"] * 12 + ["test"] * 6
    assert table.paths[0] == "images_background/Greek/character01/01_01.png"
    assert [read_image(table, i).getpixel((0, 0))[0] for i in (0, 4, 6, 17)] == [11, 22, 61, 23]  # type: ignore[index]
    cache = tmp_path / "cache" / "prism_dml"
    assert sorted(file.name for file in cache.iterdir()) == ["images_background.zip", "images_evaluation.zip"]
    again = omniglot_table(url=url)
    assert again.paths == table.paths and len(handler.asked) == 2, "the second time nothing is downloaded"


def test_wrong_checksum(
    served: tuple[str, type[Handler]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(Omniglot.zips_md5, "images_background", "0" * 32)
    with pytest.raises(ValueError, match=r"images_background.zip is damaged: its MD5 is \w{32}, not 0{32}"):
        omniglot_table(url=served[0])
    assert not list((tmp_path / "cache" / "prism_dml").iterdir())


def test_partial_download_leaves_nothing_half_written(
    served: tuple[str, type[Handler]], tmp_path: Path
) -> None:
    url, handler = served
    handler.truncate = True
    with pytest.raises(ValueError, match=r"images_background\.zip"):
        omniglot_table(tmp_path / "here", url)
    assert not list((tmp_path / "here").iterdir())
    handler.truncate = False
    assert len(omniglot_table(tmp_path / "here", url)) == 18


def test_a_damaged_file_in_the_cache_is_fetched_again(
    served: tuple[str, type[Handler]], tmp_path: Path
) -> None:
    (tmp_path / "images_background.zip").write_bytes(b"half")
    assert len(omniglot_table(tmp_path, served[0])) == 18


def test_no_network_is_one_clear_line(served: tuple[str, type[Handler]], tmp_path: Path) -> None:
    for url in ("http://127.0.0.1:9/nowhere", f"{served[0]}/missing", "http://no-such-host.invalid"):
        with pytest.raises(ValueError, match=f"cannot download Omniglot from {url}.*PRISM_DATA") as caught:
            omniglot_table(tmp_path / "x", url)
        assert "\n" not in str(caught.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot download Omniglot"):
        omniglot_table(tmp_path / "file" / "below", served[0])


def test_official_address_is_torchvisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Omniglot, "download_url_prefix", "http://127.0.0.1:9/official")
    monkeypatch.delenv("PRISM_DATA", raising=False)
    with pytest.raises(ValueError, match=r"http://127\.0\.0\.1:9/official/images_background\.zip"):
        omniglot_table(tmp_path)


@pytest.mark.skipif(
    not Path(os.environ.get("PRISM_DATA", ""), "omniglot.parquet").is_file(),
    reason="needs omniglot.parquet in $PRISM_DATA",
)
def test_parquet_in_prism_data() -> None:
    table = omniglot_table()
    train, test = table.split("train"), table.split("test")
    assert (len(train), len(test)) == (964 * 20, 659 * 20)
    assert (train.num_classes, test.num_classes) == (964, 659)
    assert not set(train.classes) & set(test.classes)
    assert read_image(test, 100).size == (105, 105)
