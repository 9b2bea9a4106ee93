"""Linear classifiers on an embedder, for methods that learn to predict the label."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from prism_dml.models.embedder import Embedder


class Classifier(nn.Module):
    """Images (B, 3, S, S) -> logits (B, C) float32, from the embeddings before they are brought to unit length.

    It only joins what a method owns, and can be thrown away after use.

    Args:
        embedder: the network.
        weights: (C, D) of the classes. There is no bias: batches hold all classes about equally often.
    """

    def __init__(self, embedder: Embedder, weights: nn.Parameter) -> None:
        super().__init__()
        self.embedder, self.weights = embedder, weights

    @staticmethod
    def draw(num_classes: int, embedding_dim: int, seed: int) -> nn.Parameter:
        """New class weights (C, D), as torch's linear layer draws them."""
        generator, bound = torch.Generator().manual_seed(seed), embedding_dim**-0.5
        weights = torch.empty(num_classes, embedding_dim)
        return nn.Parameter(weights.uniform_(-bound, bound, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        """See the class; float32 under autocast too."""
        features = self.embedder.features(images)  # (B, D)
        with torch.autocast(features.device.type, enabled=False):
            return linear(features, self.weights)


class CosineClassifier(Classifier):
    """The normalised softmax: logits are cosines / 0.05. Source: Zhai and Wu, BMVC 2019."""

    TEMPERATURE = 0.05

    @staticmethod
    def draw(num_classes: int, embedding_dim: int, seed: int) -> nn.Parameter:
        """New class weights (C, D), as long as those of the method `nsoftmax` are at first."""
        generator = torch.Generator().manual_seed(seed)
        return nn.Parameter(torch.randn(num_classes, embedding_dim, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        """See the class; float32 under autocast too."""
        return self.logits(self.embedder(images))

    def logits(self, embeddings: Tensor) -> Tensor:
        """The same from unit embeddings (B, D)."""
        with torch.autocast(embeddings.device.type, enabled=False):
            weights = normalize(self.weights.to(embeddings.dtype), dim=1)
            return linear(embeddings, weights) / self.TEMPERATURE
