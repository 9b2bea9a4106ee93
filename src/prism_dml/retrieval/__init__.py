"""Exact nearest neighbours and the quality of retrieval."""

from prism_dml.retrieval.graph import neighbour_graph
from prism_dml.retrieval.metrics import bootstrap_interval, retrieval_metrics, retrieval_scores
from prism_dml.retrieval.neighbours import nearest_neighbours

__all__ = [
    "bootstrap_interval",
    "nearest_neighbours",
    "neighbour_graph",
    "retrieval_metrics",
    "retrieval_scores",
]
