"""What a trained model says about the labels, shown to people: pictures and report pages."""

from prism_dml.audit.demo_report import Picture, Suspect, write_demo_report
from prism_dml.audit.issues import find_label_issues
from prism_dml.audit.pictures import plot_clean_probability, plot_precision, plot_retrieval, plot_training

__all__ = [
    "Picture",
    "Suspect",
    "find_label_issues",
    "plot_clean_probability",
    "plot_precision",
    "plot_retrieval",
    "plot_training",
    "write_demo_report",
]
