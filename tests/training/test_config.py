import math
import subprocess
import sys

import pytest

from prism_dml.training import TrainConfig


@pytest.mark.parametrize(
    "name, value",
    [("steps", 0), ("embedding_dim", 0), ("classes_per_batch", 0), ("samples_per_class", -1), ("lr", 0.0),
     ("lr", math.nan), ("lr", math.inf), ("proxy_lr", math.inf), ("weight_decay", math.nan), ("bank_weight", math.nan),
     ("bank_weight", math.inf), ("lr", 1e38), ("proxy_lr", -1.0),
     ("validate_every", 0), ("log_every", 0), ("checkpoint_every", 0),
     ("devices", 0), ("weight_decay", -0.1), ("lr_warmup", -1), ("workers", -1), ("seed", -1), ("validation", 1.0),
     ("validation", -0.1), ("max_unreadable", -0.1), ("noise_rate", 1.0), ("noise_rate", math.nan)],
)  # fmt: skip
def test_values_outside_their_range(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        TrainConfig(**{name: value})


def test_a_batch_of_one_class() -> None:
    with pytest.raises(ValueError, match="classes_per_batch must be at least 2, not 1"):
        TrainConfig(classes_per_batch=1, samples_per_class=8)


def test_too_few_numbers_for_a_similarity() -> None:
    with pytest.raises(ValueError, match='similarity "vmf" needs embedding_dim of at least 4, not 3'):
        TrainConfig(method="prism-mcl", similarity="vmf", embedding_dim=3)


def test_a_frozen_backbone_knows_something_and_sees_images_as_they_are() -> None:
    with pytest.raises(ValueError, match="freeze_backbone needs pretrained or weights"):
        TrainConfig(freeze_backbone=True)
    for start in ({"pretrained": True}, {"weights": "resnet50.safetensors"}):
        assert TrainConfig(backbone="resnet50", freeze_backbone=True, **start).augment == "none"


def test_the_settings_alone_do_not_import_torch() -> None:
    program = "import sys; import prism_dml.training.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
