"""The methods by name."""

import difflib

from prism_dml.methods.base import Method
from prism_dml.methods.contrastive import Contrastive
from prism_dml.methods.mcl import MCL, Oracle, PrismMCL
from prism_dml.methods.soft_triple import PrismSoftTriple, SoftTriple

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (PrismMCL, PrismSoftTriple, MCL, SoftTriple, Contrastive, Oracle)
}


def find_method(name: str) -> type[Method]:
    """The class of a method; ValueError with the nearest names if there is none."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(METHODS)}"
        raise ValueError(f"unknown method {name!r}: {hint}")
    return METHODS[name]
