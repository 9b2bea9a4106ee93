"""What can be seen in images before anything is learned of them: how they respond to patches of each other."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, conv2d, normalize

SIDE, PATCH, STRIDE = 32, 6, 2
"""Pixels that images are looked at with, those of a patch, and those from one to the next."""

FILTERS, GRID = 128, 3
"""Patches that are filters; parts of an image, in each direction, over which their responses are averaged."""

LENGTH = FILTERS * GRID**2
"""Numbers that are made of an image."""

_PLACES = 4  # in each image that patches are taken from
_MOST_WHITENED = 20_000  # images whose patches say how to whiten: these are 80,000 draws of 108 numbers
_LEAST_CONTRAST, _LEAST_VARIANCE = 0.1, 0.1  # of images of unit variance: below, there is nothing but noise
_TOGETHER = 64  # images: a core's cache holds their responses
_THRESHOLD = 0.25  # of a response, in the units of whitened patches


class Patches(nn.Module):
    """Images (B, 3, S, S) -> (B, M): a few patches of each, at the same places in all."""

    places: Tensor

    def __init__(self) -> None:
        super().__init__()
        places = torch.randint(SIDE - PATCH + 1, (_PLACES, 2), generator=torch.Generator().manual_seed(0))
        self.register_buffer("places", places)

    def forward(self, images: Tensor) -> Tensor:
        """float32 under autocast too."""
        images = _at_side(images)
        y, x = self.places.unbind(dim=1)
        found = images.unfold(2, PATCH, 1).unfold(3, PATCH, 1)[:, :, y, x]  # (B, 3, places, PATCH, PATCH)
        return found.transpose(1, 2).flatten(1)


class PatchFeatures(nn.Module):
    """Images (B, 3, S, S) -> (B, `LENGTH`): how they respond to whitened patches of a data set, drawn at random.

    A patch has its mean taken away and is divided by its contrast. No label is known to it, no wrong one either.
    Source: Coates, Lee and Ng, AISTATS 2011; patches in place of centroids, soft threshold: Coates and Ng, ICML 2011.

    Args:
        patches: (N, M) of the data set's images as `Patches` finds them; zeros: unreadable, but not all are.
        filters: number of patches that are filters, at least 1; (B, `LENGTH`) is of `FILTERS`.
    """

    filters: Tensor
    offsets: Tensor

    def __init__(self, patches: Tensor, filters: int = FILTERS) -> None:
        super().__init__()
        patches = patches[(patches != 0).any(dim=1)]
        if len(patches) > _MOST_WHITENED:
            chosen = torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))[:_MOST_WHITENED]
            patches = patches[chosen.to(patches.device)]
        patches = patches.reshape(-1, 3 * PATCH**2)
        patches = patches - patches.mean(dim=1, keepdim=True)
        patches = patches / (patches.var(dim=1, keepdim=True) + _LEAST_CONTRAST).sqrt()
        mean = patches.mean(dim=0)
        covariance = torch.cov((patches - mean).T.double())
        values, directions = torch.linalg.eigh(covariance)
        whiten = ((directions * (values + _LEAST_VARIANCE).rsqrt()) @ directions.T).to(patches)
        order = torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))
        # Of few patches, some are filters twice.
        drawn = order[torch.arange(filters) % len(patches)].to(patches.device)
        kernels = normalize((patches[drawn] - mean) @ whiten, dim=1) @ whiten  # (filters, 3 PATCH^2)
        self.register_buffer("offsets", kernels @ mean)
        kernels = kernels - kernels.mean(dim=1, keepdim=True)  # so that the mean of a patch does not count
        self.register_buffer("filters", kernels.unflatten(1, (3, PATCH, PATCH)))

    def forward(self, images: Tensor) -> Tensor:
        """float32 under autocast too. O(B.SIDE^2.FILTERS) time: less than the small network takes at this size."""
        with torch.autocast(images.device.type, enabled=False):
            return torch.cat([self._responses(part) for part in torch.split(_at_side(images), _TOGETHER)])

    def _responses(self, images: Tensor) -> Tensor:
        mean, square = (
            avg_pool2d(x.mean(dim=1, keepdim=True), PATCH, STRIDE) for x in (images, images.square())
        )
        count = 3 * PATCH**2
        variance = (square - mean.square()).clamp(min=0) * count / (count - 1)
        lying = images.contiguous(memory_format=torch.channels_last)
        responses = conv2d(lying, self.filters, stride=STRIDE)  # changed in place: half of the time
        responses.div_((variance + _LEAST_CONTRAST).sqrt_())
        responses.sub_(self.offsets[:, None, None] + _THRESHOLD).clamp_(min=0)
        return adaptive_avg_pool2d(responses, GRID).flatten(1)


def _at_side(images: Tensor) -> Tensor:
    """Images in float32 of side `SIDE`; those that have it stay: to pool them would take half of the time."""
    images = images.float()
    return images if images.shape[2:] == (SIDE, SIDE) else adaptive_avg_pool2d(images, SIDE)


def patch_features(
    embed_all: Callable[[nn.Module], Tensor], device: torch.device, filters: int = FILTERS
) -> Tensor:
    """`PatchFeatures` (N, filters `GRID`^2) of a whole data set, by two passes over it; zeros of what cannot be read.

    Args:
        embed_all: gives a network (images -> vectors) every image: network -> (N, M).
        device: that the images are on.
        filters: number of filters.
    """
    patches = embed_all(Patches().to(device))
    if not patches.any():  # no image can be read
        return patches.new_zeros(len(patches), filters * GRID**2)
    return embed_all(PatchFeatures(patches, filters))
