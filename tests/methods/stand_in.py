"""A network that is one matrix, and steps of a method on it."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from prism_dml.methods.base import Method, TrainingSet
from prism_dml.methods.config import MethodConfig
from prism_dml.methods.registry import find_method

C, D, B, N = 5, 8, 10, 40
LABELS, INDEX = torch.arange(B) % C, torch.arange(B)


class Linear(nn.Module):
    """An embedder without batch statistics, so that what one image gives does not depend on the others."""

    frozen = False

    def __init__(self, seed: int = 0, pixels: int = 3 * 16, dim: int = D) -> None:
        super().__init__()
        self.config = {"embedding_dim": dim}
        self.weight = nn.Parameter(torch.randn(pixels, dim, generator=torch.Generator().manual_seed(seed)))

    def represent(self, images: Tensor) -> Tensor:
        return images.flatten(1)

    def project(self, represented: Tensor) -> Tensor:
        return represented @ self.weight

    def features(self, images: Tensor) -> Tensor:
        return self.project(self.represent(images))

    def forward(self, images: Tensor) -> Tensor:
        return normalize(self.features(images), dim=1)

    def mapped(self, matrix: Tensor) -> "Linear":
        other = Linear(0, *self.weight.shape)
        other.weight = nn.Parameter(self.weight.detach() @ matrix.T)
        return other

    def sibling(self) -> "Linear":
        return Linear(1, *self.weight.shape)


def build(name: str, labels: Tensor | None = None, embedder: Linear | None = None, **options) -> Method:
    """A method on N samples of C classes, or on those with the given labels."""
    if name.startswith("co-teaching"):
        options = {"noise_rate": 0.3} | options
    labels = torch.arange(N) % C if labels is None else labels
    data = TrainingSet(labels, int(labels.max()) + 1)
    return find_method(name)(embedder or Linear(), data, MethodConfig(method=name, **options))


def draw(seed: int, batch: int = B) -> Tensor:
    return torch.randn(batch, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def embed_all(network: nn.Module) -> Tensor:
    """The network on N images."""
    return network(draw(0, N))


def step(method: Method, images: Tensor, labels: Tensor = LABELS, index: Tensor = INDEX) -> Tensor:
    """One step with plain gradient descent; the mask of what was kept."""
    method.zero_grad()
    loss, kept = method(images, labels, index)
    loss.backward()
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.grad is not None:
                parameter -= 0.01 * parameter.grad
    method.on_update()
    return kept
