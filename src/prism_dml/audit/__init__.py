"""What a trained model says about the labels, shown to people: pictures and report pages."""

from prism_dml.audit.demo_report import Picture, Suspect, write_demo_report
from prism_dml.audit.issues import find_label_issues
from prism_dml.audit.pictures import plot_clean_probability, plot_precision, plot_retrieval, plot_training
from prism_dml.audit.reliability import calibration_error, measure_reliability
from prism_dml.audit.report import write_report
from prism_dml.audit.suggestions import suggest_corrections
from prism_dml.audit.summary import Audit, make_audit

__all__ = [
    "Audit",
    "Picture",
    "Suspect",
    "calibration_error",
    "find_label_issues",
    "make_audit",
    "measure_reliability",
    "plot_clean_probability",
    "plot_precision",
    "plot_retrieval",
    "plot_training",
    "suggest_corrections",
    "write_demo_report",
    "write_report",
]
