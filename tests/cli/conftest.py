"""A small data set and an untrained model, for commands to work on."""

import numpy as np
import pytest
from PIL import Image

from prism_dml.models import Embedder, save


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """train/ with 3 classes x 6 and test/ with 2 other classes x 5; names with spaces and accents."""
    folder = tmp_path_factory.mktemp("images") / "my photos"
    generator = np.random.default_rng(0)
    for split, names, count in [("train", ["café", "tea pot", "cup"], 6), ("test", ["fork", "knife"], 5)]:
        for name in names:
            colour = generator.integers(0, 200, 3)
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = colour + generator.integers(0, 55, (20, 24, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{i}.png")
    return folder


@pytest.fixture(scope="session", params=[1.0, 1.25], ids=["cached", "streamed"])
def run_folder(request, tmp_path_factory):
    """The folder of a run whose model was never trained; images are cut out of larger ones, or not."""
    folder = tmp_path_factory.mktemp("run")
    options = {"widths": [8, 8]}
    model = Embedder("small", 6, image_size=16, resize_ratio=request.param, backbone_options=options)
    save(model, folder / "model")
    return folder


@pytest.fixture
def prism(capsys):
    """Runs a command in this process -> its exit status, standard output and standard error."""
    from prism_dml.cli.main import main

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run
