"""``prism methods``."""

from __future__ import annotations

from prism_dml.cli.output import print_json


def methods(*, json: bool = False) -> None:
    """List the methods that `prism train --method` knows, each with a line.

    Args:
        json: Print them as JSON.
    """
    from prism_dml.methods.registry import METHODS

    summaries = {name: method.summary for name, method in METHODS.items()}
    if json:
        print_json(summaries)
        return
    width = max(map(len, summaries))
    for name, summary in summaries.items():
        print(f"{name:<{width}}  {summary}")
