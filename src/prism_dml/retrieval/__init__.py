"""Nearest neighbours, exact and by index, and the quality of retrieval."""

from prism_dml.retrieval.graph import neighbour_graph
from prism_dml.retrieval.index import (
    EmbeddingIndex,
    IndexKind,
    build_index,
    choose_kind,
    holds_index,
    load_index,
    save_index,
)
from prism_dml.retrieval.metrics import bootstrap_interval, retrieval_metrics, retrieval_scores
from prism_dml.retrieval.neighbours import nearest_neighbours

__all__ = [
    "EmbeddingIndex",
    "IndexKind",
    "bootstrap_interval",
    "build_index",
    "choose_kind",
    "holds_index",
    "load_index",
    "nearest_neighbours",
    "neighbour_graph",
    "retrieval_metrics",
    "retrieval_scores",
    "save_index",
]
