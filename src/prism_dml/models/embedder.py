"""A backbone and an embedding head: images -> unit vectors."""

import copy
import difflib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.modules.batchnorm import _BatchNorm

from prism_dml.files import at_home
from prism_dml.models.preprocess import Preprocess
from prism_dml.models.small import SmallConvNet

_SMALL = "small"
_SMALL_IMAGE_SIZE = 48
_LOADING = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}


class Embedder(nn.Module):
    """Images (B, 3, S, S), normalised -> unit embeddings (B, D): backbone, linear head, unit length."""

    transform: Preprocess
    """A picture -> (3, S, S): the preprocessing of evaluation."""
    config: dict[str, Any]
    """The arguments that build the same architecture again, JSON-able."""

    def __init__(
        self,
        backbone: str = _SMALL,
        embedding_dim: int = 128,
        *,
        image_size: int | None = None,
        resize_ratio: float = 1.0,
        pretrained: bool = False,
        weights: str | Path | None = None,
        backbone_options: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        """Build the network; the global random state is left as it is.

        Args:
            backbone: "small" (SmallConvNet) or the name of a timm model, such as "resnet50".
            embedding_dim: D, >= 1.
            image_size: S in pixels; None: 48 for "small", else what timm's model was made for.
            resize_ratio: >= 1; `transform` resizes the short side to resize_ratio * S before it cuts out S.
            pretrained: start from timm's published weights (downloaded once, then cached); not for "small". Batch
                norms keep their statistics then, see `train`.
            weights: start from this checkpoint file of the timm backbone (safetensors or torch) instead.
            backbone_options: more arguments of SmallConvNet or timm.create_model, JSON-able.
            seed: of the initial weights.

        Raises:
            ValueError: an unknown backbone, a bad argument, weights that cannot be had or do not fit.
        """
        super().__init__()
        if embedding_dim < 1:
            raise ValueError(f"embedding_dim must be at least 1, got {embedding_dim}")
        if not resize_ratio >= 1.0:
            raise ValueError(f"resize_ratio must be at least 1, got {resize_ratio}")
        self.seed, self.starts_trained, self.frozen = seed, pretrained or weights is not None, False
        options = dict(backbone_options or {})
        # A model's description must not make timm read other files.
        if loading := sorted(_LOADING & options.keys()):
            raise ValueError(f"{loading[0]} is no argument for a backbone: give pretrained or weights")
        # Only the CPU's generator: torch.manual_seed would seed the accelerators' too.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            if backbone == _SMALL:
                if pretrained or weights is not None:
                    raise ValueError('the backbone "small" has no pretrained weights')
                size = _SMALL_IMAGE_SIZE if image_size is None else image_size
                self.transform = Preprocess(size, round(size * resize_ratio))
                self.backbone = _build_small(options)
            else:
                self.transform = _timm_preprocess(backbone, image_size, resize_ratio)
                self.backbone = _build_timm(backbone, self.transform.image_size, pretrained, weights, options)
            num_features = _num_features(self.backbone, backbone, self.transform.image_size)
            self.head = nn.Linear(num_features, embedding_dim, bias=False)
        self.config = {
            "backbone": backbone,
            "embedding_dim": embedding_dim,
            "image_size": self.transform.image_size,
            "resize_ratio": resize_ratio,
            "backbone_options": options,
        }
        # Convolutions run faster so, up to two times on a CPU.
        self.to(memory_format=torch.channels_last)
        self.train()

    def train(self, mode: bool = True) -> "Embedder":
        """Set the training mode; batch norms of a backbone that starts trained keep their statistics, as in evaluation.

        A short fine-tuning moves them half-way only, to where they fit neither the weights nor the images.
        Source: usual in deep metric learning, see Musgrave et al., "A Metric Learning Reality Check", ECCV 2020.
        """
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        elif self.starts_trained:
            for module in self.backbone.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def freeze(self) -> "Embedder":
        """Leave the backbone as it is, for good; in the place of images it takes what it made of them, (B, F)."""
        if not self.frozen:
            self.frozen = True
            self.backbone.requires_grad_(False)
            self.backbone.forward = partial(_look_once, self.backbone.forward)
        return self.train(self.training)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S), normalised as `transform` does -> unit embeddings (B, D) float32.

        float32 under autocast too. A feature vector of all zeros gives the zero vector, never NaN.
        """
        # This eps bounds the gradient at the zero vector, which 1 / eps scales.
        return normalize(self.features(images), dim=1, eps=1e-6)

    def features(self, images: Tensor) -> Tensor:
        """The embeddings before they are brought to unit length, (B, D) float32, for a classifier on top."""
        return self.project(self.represent(images))

    def represent(self, images: Tensor) -> Tensor:
        """What the backbone makes of images, (B, F): what the head maps to embeddings."""
        if images.ndim == 4:  # else what a frozen backbone made of them
            images = images.contiguous(memory_format=torch.channels_last)
        represented: Tensor = self.backbone(images)
        return represented

    def project(self, represented: Tensor) -> Tensor:
        """What the head makes of that: `features`, (B, D) float32 under autocast too."""
        with torch.autocast(represented.device.type, enabled=False):
            embeddings: Tensor = self.head(represented.to(self.head.weight.dtype)).float()
            return embeddings

    def mapped(self, matrix: Tensor) -> "Embedder":
        """The same network, of which a matrix (D, D) maps the embeddings before they are brought to unit length.

        It has a head of its own and shares the backbone: train(), eval() and requires_grad_() of one are of both.
        """
        other = copy.deepcopy(self, {id(self.backbone): self.backbone})
        weight = self.head.weight
        with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
            other.head.weight.copy_(matrix.to(weight.dtype) @ weight)
        return other

    def sibling(self) -> "Embedder":
        """The same architecture from another draw of initial weights; published ones are the same.

        To be called before the training starts: a backbone with published weights is copied as it stands.
        """
        other = Embedder(**self.config, seed=self.seed + 2**31)  # the generator has 32 bits of seed
        if self.starts_trained:
            other.backbone.load_state_dict(self.backbone.state_dict())
            other.starts_trained = True
        if self.frozen:
            other.freeze()
        return other.train(self.training)


def _look_once(forward: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """What a frozen backbone makes of images (B, 3, S, S); what it made of them before, (B, F), stays."""
    return images if images.ndim == 2 else forward(images)


def _build_small(options: dict[str, Any]) -> nn.Module:
    try:
        return SmallConvNet(**options)
    except TypeError as error:
        raise ValueError(f'bad options of the backbone "{_SMALL}": {_one_line(error)}') from None


def _pretrained_cfg(name: str) -> Any:
    """What timm knows of a model. ValueError with close matches if it does not know it."""
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, [_SMALL, *timm.list_models()], n=5)
        hint = f"; did you mean {', '.join(close)}?" if close else "; any model of timm.list_models() will do"
        raise ValueError(f'unknown backbone "{name}"{hint}')
    cfg = timm.get_pretrained_cfg(architecture) if architecture == name else _tagged_cfg(name)
    if cfg is None:
        raise ValueError(f'timm has no configuration for the backbone "{name}"')
    return cfg


def _tagged_cfg(name: str) -> Any:
    """The same for a name with a tag, "resnet18.a1_in1k". ValueError naming the tags there are."""
    architecture = name.partition(".")[0]
    tagged = timm.list_pretrained(f"{architecture}.*")
    if name not in tagged:
        raise ValueError(f'unknown weights "{name}"; there are: {", ".join(tagged) or "none"}')
    return timm.get_pretrained_cfg(name)


def _timm_preprocess(name: str, image_size: int | None, resize_ratio: float) -> Preprocess:
    cfg = _pretrained_cfg(name)
    size = cfg.input_size[-1] if image_size is None else image_size
    return Preprocess(size, round(size * resize_ratio), tuple(cfg.mean), tuple(cfg.std))


def _build_timm(
    name: str, image_size: int, pretrained: bool, weights: str | Path | None, options: dict[str, Any]
) -> nn.Module:
    cfg = _pretrained_cfg(name)
    if cfg.fixed_input_size and image_size != cfg.input_size[-1]:
        options = {"img_size": image_size, **options}
    state, plain = torch.get_rng_state(), options
    if weights is not None:
        weights = at_home(weights)
        if not weights.is_file():
            raise ValueError(f"no such file of weights: {weights}")
        if weights.suffix != ".safetensors":  # timm's own loading may run code in a pickle
            _refuse_code(weights)
        options = dict(options)
        options["pretrained_cfg_overlay"] = {"file": str(weights), "source": "", "custom_load": False}
    start = (
        f"with weights {weights}"
        if weights is not None
        else "with pretrained weights"
        if pretrained
        else "so"
    )
    try:
        model: nn.Module = timm.create_model(
            name, pretrained=pretrained or weights is not None, num_classes=0, **options
        )
    except Exception as error:  # models, weights, hub and network have no kind of error in common
        raise ValueError(f'the backbone "{name}" cannot be built {start}: {_one_line(error)}') from error
    if weights is not None:
        torch.set_rng_state(state)
        _check_loaded(model, timm.create_model(name, num_classes=0, **plain), name, weights)
    return model


def _refuse_code(weights: str | Path) -> None:
    """ValueError if a file is not tensors that torch can load without running what is in it."""
    try:
        torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # the kind says little, and torch's text how to run it all the same
        raise ValueError(f"{weights} is not a file of weights, or holds more than tensors") from error


def _check_loaded(model: nn.Module, fresh: nn.Module, name: str, weights: str | Path) -> None:
    """ValueError if some of the model's weights are still a fresh one's: timm lets a file lack them."""
    initial = dict(fresh.named_parameters())
    left = [
        parameter
        for parameter, value in model.named_parameters()
        # Only random ones tell: constant ones, such as a norm's, may be equal and loaded all the same.
        if value.ndim > 1 and initial[parameter].std() > 0 and torch.equal(value, initial[parameter])
    ]
    if left:
        raise ValueError(
            f'the weights {weights} are not those of the backbone "{name}": '
            f"{len(left)} tensors, {left[0]} the first, are not in it"
        )


def _num_features(backbone: nn.Module, name: str, image_size: int) -> int:
    """Length of the backbone's features, found by trying: timm's num_features leaves some heads out."""
    backbone.eval()
    try:
        with torch.no_grad():
            features = backbone(torch.zeros(1, 3, image_size, image_size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(
            f'the backbone "{name}" does not take images of {image_size} pixels: {_one_line(error)}'
        ) from None
    if features.ndim != 2 or features.shape[1] == 0:
        raise ValueError(f'the backbone "{name}" gives no feature vector but {tuple(features.shape[1:])}')
    return int(features.shape[1])


def _one_line(error: Exception) -> str:
    """The first line of an error's message, or its kind."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
