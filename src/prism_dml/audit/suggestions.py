"""The corrections that an audit suggests, for whoever does not want to look at each."""

from __future__ import annotations

from prism_dml.audit.summary import Audit
from prism_dml.data import Correction, Corrections


def suggest_corrections(audit: Audit) -> Corrections:
    """A correction for every label that looks wrong: the suggested class, or dropped where it is an outlier.

    Suspects without another suggestion, and those of classes that overlap, are left as they are.
    """
    suspects = audit.issues[audit.issues["is_label_issue"]]
    items = []
    columns = (suspects[name] for name in ("given_label", "suggested_label", "issue"))
    for sample, given, suggested, issue in zip(suspects.index, *columns, strict=True):
        index, path = int(audit.index[sample]), audit.paths[sample]
        if issue == "outlier":
            items.append(Correction(index, path, str(given), "drop", None))
        elif suggested != given and issue != "ambiguous classes":
            items.append(Correction(index, path, str(given), "relabel", str(suggested)))
    return Corrections(audit.fingerprint, items)
