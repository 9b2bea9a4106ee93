"""Omniglot: 1,623 handwritten characters of 50 alphabets, each drawn by 20 people."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import shutil
import tempfile
import urllib.request
import zipfile
from pathlib import Path

from torchvision.datasets import Omniglot

from prism_dml.data.readers import read_table
from prism_dml.data.table import BytesImages, ImageTable

logger = logging.getLogger("prism_dml")

SPLIT_OF = {"images_background": "train", "images_evaluation": "test"}
TIMEOUT = 30
"""Seconds without a byte after which a download is given up."""


def omniglot_table(root: str | Path | None = None, url: str | None = None) -> ImageTable:
    """Omniglot, split "train" (964 background characters) and "test" (659 evaluation characters).

    Read from omniglot.parquet in `root`, by default the folder $PRISM_DATA; where that is missing, from the
    authors' two zip files in `root`, by default the user's cache folder ($XDG_CACHE_HOME/prism_dml, or
    ~/.cache/prism_dml), into which they are downloaded once (16 MB), checked by the MD5 that torchvision has
    for them.

    Args:
        root: folder of the data.
        url: address of the folder that has the zip files; None: the authors' repository, as torchvision gives
        it.

    Raises:
        ValueError: no network, or a download that is not what its checksum says.

    Source: Lake, Salakhutdinov, Tenenbaum, "Human-level concept learning through probabilistic program
    induction", Science 2015.
    """
    data = root or os.environ.get("PRISM_DATA")
    if data and (parquet := Path(data, "omniglot.parquet")).is_file():
        return read_table(parquet)
    folder = Path(root) if root else cache_folder()
    images: list[bytes] = []
    paths: list[str] = []
    labels: list[str] = []
    splits: list[str] = []
    for name, split in SPLIT_OF.items():
        with zipfile.ZipFile(_fetch(folder, f"{url or Omniglot.download_url_prefix}/{name}.zip")) as archive:
            for member in sorted(archive.namelist()):
                parts = member.split("/")  # images_background/ALPHABET/CHARACTER/IMAGE.png
                if len(parts) == 4 and parts[0] == name and member.endswith(".png"):
                    images.append(archive.read(member))
                    paths.append(member)
                    labels.append(f"{parts[1]}/{parts[2]}")
                    splits.append(split)
    return ImageTable.from_names(BytesImages(images), paths, labels, splits=splits)


def cache_folder() -> Path:
    """Where downloads are kept: $XDG_CACHE_HOME/prism_dml, or ~/.cache/prism_dml."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "prism_dml"


def _fetch(folder: Path, url: str) -> Path:
    """The file of an address, in the folder: as it is if its checksum is right, else downloaded."""
    name = url.rsplit("/", 1)[1]
    expected = Omniglot.zips_md5[name.removesuffix(".zip")]
    file = folder / name
    if file.is_file() and _md5(file) == expected:
        return file
    logger.info("downloading %s to %s", url, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The file gets its name only when it is complete and checked.
        with tempfile.TemporaryDirectory(dir=folder, prefix="download-") as scratch:
            part = Path(scratch, name)
            with urllib.request.urlopen(url, timeout=TIMEOUT) as response, part.open("wb") as out:
                shutil.copyfileobj(response, out)
            if (found := _md5(part)) != expected:
                raise ValueError(f"{url} is damaged: its MD5 is {found}, not {expected}")
            part.replace(file)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise ValueError(
            f"cannot download Omniglot from {url} to {folder}: {reason}; "
            "where there is no network, set PRISM_DATA to a folder with omniglot.parquet"
        ) from error
    return file


def _md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
