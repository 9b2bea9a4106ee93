"""The methods by name."""

import difflib

from prism_dml.methods.base import Method
from prism_dml.methods.co_teaching import CoTeaching, CoTeachingPlus, CoTeachingTemperature
from prism_dml.methods.f_correction import FCorrection
from prism_dml.methods.knn_denoising import KNNDenoising
from prism_dml.methods.mcl import MCL, Oracle, PrismMCL
from prism_dml.methods.pairwise import Circle, Contrastive, FastAP, MultiSimilarity, SupCon
from prism_dml.methods.prototypes import PrismPrototypes
from prism_dml.methods.proxy import NormalisedSoftmax, ProxyAnchor, ProxyNCA, SoftTriple, SubCentreArcFace
from prism_dml.methods.refract import Refract, RefractOracle
from prism_dml.methods.soft_triple import PrismSoftTriple

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        PrismMCL,
        PrismSoftTriple,
        # the 12 approaches that the paper compares with
        CoTeaching,
        CoTeachingPlus,
        CoTeachingTemperature,
        FCorrection,
        SoftTriple,
        FastAP,
        NormalisedSoftmax,
        ProxyNCA,
        MultiSimilarity,
        Circle,
        Contrastive,
        MCL,
        # beyond the paper
        ProxyAnchor,
        SupCon,
        SubCentreArcFace,
        KNNDenoising,
        PrismPrototypes,
        # ours
        Refract,
        Oracle,
        RefractOracle,
    )
}


def find_method(name: str) -> type[Method]:
    """The class of a method; ValueError with the nearest names if there is none."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(METHODS)}"
        raise ValueError(f"unknown method {name!r}: {hint}")
    return METHODS[name]
