"""Losses with trained class weights (proxies), all labels believed."""

from pytorch_metric_learning.losses import (
    NormalizedSoftmaxLoss,
    ProxyAnchorLoss,
    ProxyNCALoss,
    SubCenterArcFaceLoss,
)
from torch import nn

from prism_dml.losses.library import LibraryLoss
from prism_dml.losses.soft_triple import SoftTripleLoss
from prism_dml.methods.base import TrainingSet
from prism_dml.methods.config import MethodConfig
from prism_dml.methods.pairwise import Believing


class ProxyMethod(Believing):
    """A loss whose parameters are class weights, with a learning rate of their own."""

    def proxies(self) -> list[nn.Parameter]:
        """The class weights."""
        return list(self.criterion.parameters())


class SoftTriple(ProxyMethod):
    """SoftTriple loss (Qian et al., ICCV 2019): lambda 20, gamma 0.1, margin 0.01.

    Ten centres a class below 500 classes, else two.
    """

    name = "soft-triple"
    summary = "SoftTriple loss, all labels believed"
    criterion: SoftTripleLoss

    def _criterion(self, data: TrainingSet, config: MethodConfig) -> nn.Module:
        return SoftTripleLoss(data.num_classes, self.embedding_dim)


class NormalisedSoftmax(ProxyMethod):
    """Cross-entropy of the cosines to one weight for each class (Zhai and Wu, BMVC 2019): temperature 0.05."""

    name = "nsoftmax"
    summary = "normalised softmax, all labels believed"

    def _criterion(self, data: TrainingSet, config: MethodConfig) -> nn.Module:
        return LibraryLoss(
            NormalizedSoftmaxLoss,
            num_classes=data.num_classes,
            embedding_size=self.embedding_dim,
            temperature=0.05,
        )


class ProxyNCA(ProxyMethod):
    """Neighbourhood components with one proxy for each class (Movshovitz-Attias et al., ICCV 2017): scale 3."""

    name = "proxy-nca"
    summary = "ProxyNCA loss, all labels believed"

    def _criterion(self, data: TrainingSet, config: MethodConfig) -> nn.Module:
        return LibraryLoss(
            ProxyNCALoss, num_classes=data.num_classes, embedding_size=self.embedding_dim, softmax_scale=3
        )


class ProxyAnchor(ProxyMethod):
    """Proxy-Anchor loss (Kim et al., CVPR 2020): margin 0.1, alpha 32."""

    name = "proxy-anchor"
    summary = "Proxy-Anchor loss, all labels believed"

    def _criterion(self, data: TrainingSet, config: MethodConfig) -> nn.Module:
        return LibraryLoss(
            ProxyAnchorLoss,
            num_classes=data.num_classes,
            embedding_size=self.embedding_dim,
            margin=0.1,
            alpha=32,
        )


class SubCentreArcFace(ProxyMethod):
    """ArcFace with 3 sub-centres a class, for noisy labels (Deng et al., ECCV 2020): margin 28.6 degrees, scale 64."""

    name = "sub-centre-arcface"
    summary = "ArcFace with sub-centres, where wrong labels can gather apart from the right ones"

    def _criterion(self, data: TrainingSet, config: MethodConfig) -> nn.Module:
        return LibraryLoss(
            SubCenterArcFaceLoss,
            num_classes=data.num_classes,
            embedding_size=self.embedding_dim,
            margin=28.6,
            scale=64,
            sub_centers=3,
        )
