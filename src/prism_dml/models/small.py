"""A small convolutional network, trained from scratch, for images of 28 to 96 pixels."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class SmallConvNet(nn.Sequential):
    """A block for each width: 3x3 convolution, max pooling, batch norm, ReLU; then an average over a grid.

    Pooling comes before the normalisation: nearly the same function for half the time of a step on a CPU,
    since the largest maps are touched only once. Odd sides are rounded up, so no size is too small.
    Source: the four-block network of few-shot learning (Vinyals et al., 2016).
    """

    def __init__(
        self, widths: Sequence[int] = (32, 64, 64, 64), residual: bool = False, grid: int = 1
    ) -> None:
        """Build it with torch's default initialisation.

        Args:
            widths: channels of each block, at least one block, each >= 1.
            residual: after each block but the first, add a residual 3x3 convolution, batch norm, ReLU.
            grid: side of the map that the features are read from, >= 1; 1 averages over the whole image.

        Raises:
            ValueError: no block, or a width or grid below 1.
        """
        if not widths or min(widths) < 1 or grid < 1:
            raise ValueError(f"widths and grid must be at least 1, got widths={tuple(widths)}, grid={grid}")
        layers: list[nn.Module] = []
        for position, (inputs, outputs) in enumerate(zip((3, *widths), widths, strict=False)):
            layers += [
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.MaxPool2d(2, ceil_mode=True),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            ]
            if residual and position > 0:
                layers.append(_Residual(outputs))
        super().__init__(*layers, nn.AdaptiveAvgPool2d(grid), nn.Flatten())
        self.widths: tuple[int, ...] = tuple(widths)
        """Channels of each block."""
        self.num_features: int = widths[-1] * grid**2
        """Length of the feature vectors: images (B, 3, H, W) -> features (B, num_features)."""

    @property
    def blocks(self) -> list[nn.Module]:
        """The last layer of each block, which makes its map (B, width, h, w)."""
        starts = (nn.Conv2d, nn.AdaptiveAvgPool2d)
        return [layer for layer, following in pairwise(self) if isinstance(following, starts)]


class _Residual(nn.Module):
    """x + ReLU(BN(conv(x))), channels unchanged."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.branch(x)
        return x + y
