"""SoftTriple: a softmax over classes that have several trained centres each."""

import torch
from pytorch_metric_learning.losses import SoftTripleLoss as PmlSoftTripleLoss
from torch import Tensor, nn

_MANY_CLASSES = 500


class SoftTripleLoss(nn.Module):
    """SoftTriple loss of pytorch-metric-learning, with trained centres and their similarity to embeddings.

    Source: SoftTriple (Qian et al., ICCV 2019); settings of PRISM (Liu et al., CVPR 2021).
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        centers_per_class: int | None = None,
        la: float = 20.0,
        gamma: float = 0.1,
        margin: float = 0.01,
        seed: int = 0,
    ) -> None:
        """Draw the centres, the only parameters.

        Args:
            num_classes: C, >= 1.
            embedding_dim: D, >= 1.
            centers_per_class: >= 1; None: 10 below 500 classes, else 2.
            la: > 0, scale of the similarities in the softmax over classes.
            gamma: > 0, temperature of the softmax over the centres of a class.
            margin: >= 0, taken off the similarity to the given class.
            seed: of the centres' initial values; the global random state is left as it is.

        Raises:
            ValueError: an argument out of its range.
        """
        super().__init__()
        if centers_per_class is None:
            centers_per_class = 10 if num_classes < _MANY_CLASSES else 2
        if min(num_classes, embedding_dim, centers_per_class) < 1:
            raise ValueError(
                "num_classes, embedding_dim and centers_per_class must be at least 1, "
                f"got {num_classes}, {embedding_dim}, {centers_per_class}"
            )
        if not (la > 0.0 and gamma > 0.0 and margin >= 0.0):
            raise ValueError(
                f"la and gamma must be above 0, margin not below, got la={la}, gamma={gamma}, margin={margin}"
            )
        self.num_classes = num_classes
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.loss = PmlSoftTripleLoss(
                num_classes,
                embedding_dim,
                centers_per_class=centers_per_class,
                la=la,
                gamma=gamma,
                margin=margin,
            )

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Mean loss () in the centres' dtype; an empty batch gives 0 with a gradient of zeros.

        embeddings: (B, D), any float dtype, autocast or not. labels: (B,) integers in [0, C).
        ValueError for other shapes, and on the CPU for other labels.
        """
        if labels.shape != embeddings.shape[:1] or labels.is_floating_point():
            raise ValueError(
                f"labels must be integers of shape ({len(embeddings)},), "
                f"got {labels.dtype} {tuple(labels.shape)}"
            )
        if not len(labels):
            return self.class_similarities(embeddings).sum()
        # Elsewhere the check would wait for the device, and no graph of torch.compile has a branch for it.
        checked = labels.device.type == "cpu" and not torch.compiler.is_compiling()
        if checked and (labels.min() < 0 or labels.max() >= self.num_classes):
            raise ValueError(f"labels must be from 0 to {self.num_classes - 1}")
        with torch.autocast(embeddings.device.type, enabled=False):
            # Converted first: the library would convert the trained centres to the embeddings' dtype instead.
            loss: Tensor = self.loss(embeddings.to(self.loss.fc.dtype), labels)
        return loss

    def class_similarities(self, embeddings: Tensor) -> Tensor:
        """Relaxed similarity of embeddings (B, D) to each class (B, C), in [-1, 1]; paper, eq. 6."""
        if embeddings.ndim != 2 or embeddings.shape[1] != len(self.loss.fc):
            raise ValueError(
                f"embeddings must have shape (B, {len(self.loss.fc)}), got {tuple(embeddings.shape)}"
            )
        with torch.autocast(embeddings.device.type, enabled=False):
            similarities: Tensor = self.loss.get_logits(embeddings.to(self.loss.fc.dtype))
        return similarities
