"""What can be set about a training run; imports nothing heavy, so that the command line answers at once."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from prism_dml.methods.config import MethodConfig

Precision = Literal["32-true", "bf16-mixed"]
Tracking = Literal["none", "tensorboard", "wandb"]

_LARGEST = 1e37  # an optimiser multiplies rates by up to ten, and float32 ends at 3.4e38


@dataclass
class TrainConfig(MethodConfig):
    """Settings of a training run, those of its method included.

    Args:
        backbone: "small" (a convolutional network for images of 28 to 96 pixels, trained from scratch) or a timm model.
        pretrained: Start from timm's published weights; batch norms keep their statistics then.
        weights: Start from this checkpoint file of the backbone instead; batch norms as with pretrained.
        freeze_backbone: Train the head only: the backbone embeds each image once, without augmentation, before the
            first step. Minutes in the place of hours where there is no GPU; needs pretrained or weights.
        embedding_dim: Number of an embedding's components.
        image_size: Side of the images in pixels; null: 48 for "small", else what the backbone was made for.
        augment: photo (crops of 60 to 100 % of the area, flips, colours), drawing (affine, no flip: letters, symbols)
            or none, alike for images in memory and streamed ones; or crop (20 to 100 % of the whole image, before it is
            cut square, and flips), for streamed ones only.
        steps: Number of updates, at least 1.
        classes_per_batch: Classes in a batch (P).
        samples_per_class: Samples of each class in a batch (K); a batch has P x K images.
        optimizer: adam or adamw.
        lr: Learning rate of the network at its peak, above 0.
        proxy_lr: Learning rate of proxies, if the method has any.
        weight_decay: At least 0; decoupled with adamw.
        lr_warmup: Steps in which the learning rate rises from 0; then it falls to 0 as a cosine.
        validation: Share of the training classes in [0, 1) set aside to choose the best checkpoint; 0, or where it is
            less than two classes: none, the last is taken. Data with a split "validation", "valid" or "val" are
            validated on that, whatever the share above 0.
        validate_every: Steps from one validation to the next.
        log_every: Steps from one line of metrics.jsonl to the next.
        track: Where these lines go as well: tensorboard (RUN/tensorboard) or wandb (Weights & Biases, project "prism");
            pip install 'prism-dml[tensorboard]' or 'prism-dml[wandb]'.
        checkpoint_every: Steps from one checkpoint to the next.
        max_bad_steps: A step whose loss or gradient is not finite is left out; so many in a row end the run.
        max_unreadable: Share of images in [0, 1) that may be unreadable before the command gives up.
        cache: memory (decode once), stream (decode each time), or auto: memory up to 128 pixels, if there is enough.
        workers: Processes that decode streamed images.
        accelerator: cpu or cuda; auto: cuda where there is a GPU for it.
        devices: Number of devices of this machine, each with a process that embeds its share of every batch.
        precision: 32-true or bf16-mixed, which is 32-true on a CPU that is slow at it.
        seed: Of every random choice, but for class weights, which start alike for all seeds.
    """

    backbone: str = "small"
    pretrained: bool = False
    weights: str | None = None
    freeze_backbone: bool = False
    embedding_dim: int = 128
    image_size: int | None = None
    augment: Literal["photo", "crop", "drawing", "none"] = "photo"
    steps: int = 2000
    classes_per_batch: int = 16
    samples_per_class: int = 4
    optimizer: Literal["adam", "adamw"] = "adamw"
    lr: float = 1e-3
    proxy_lr: float = 1e-1
    weight_decay: float = 0.0
    lr_warmup: int = 100
    validation: float = 0.1
    validate_every: int = 250
    log_every: int = 50
    track: Tracking = "none"
    checkpoint_every: int = 250
    max_bad_steps: int = 10
    max_unreadable: float = 0.01
    cache: Literal["auto", "memory", "stream"] = "auto"
    workers: int = 2
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1
    precision: Precision = "32-true"
    seed: int = 0

    def __post_init__(self) -> None:
        """ValueError on a value outside its range."""
        super().__post_init__()
        for name in ("lr", "proxy_lr", "weight_decay"):
            if not getattr(self, name) < _LARGEST:
                raise ValueError(f"{name} must be below {_LARGEST:g}, not {getattr(self, name)}")
        positive = (
            "embedding_dim", "steps", "classes_per_batch", "samples_per_class", "lr", "proxy_lr", "validate_every",
            "log_every", "checkpoint_every", "max_bad_steps", "devices",
        )  # fmt: skip
        for name in positive:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("weight_decay", "lr_warmup", "workers", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")
        for name in ("validation", "max_unreadable"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        if self.seed >= 2**63:
            raise ValueError(f"seed must be below 2^63, not {self.seed}")
        if self.classes_per_batch < 2:
            raise ValueError(f"classes_per_batch must be at least 2, not {self.classes_per_batch}")
        if self.similarity == "vmf" and self.embedding_dim < 4:
            raise ValueError(f'similarity "vmf" needs embedding_dim of at least 4, not {self.embedding_dim}')
        if self.track != "none" and find_spec(self.track) is None:
            raise ValueError(f"{self.track} is not installed: pip install 'prism-dml[{self.track}]'")
        if self.freeze_backbone:
            if not self.pretrained and self.weights is None:
                raise ValueError(
                    "freeze_backbone needs pretrained or weights: a backbone as it is drawn knows nothing"
                )
            self.augment = "none"
