"""``prism demo``."""

from __future__ import annotations

import shlex
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any, Literal

from prism_dml.cli.output import print_json, print_table


def demo(
    *,
    data: Literal["letters", "omniglot"] = "letters",
    out: Path | None = None,
    noise_rate: float = 0.5,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Train with and without PRISM and Refract with half the labels wrong, and compare all with the oracle.

    The models are tested on characters that none of them has seen. The folder gets report.html, the models,
    pictures, and samples.csv: a judgement on each training label. Takes about two minutes for the letters. Ctrl-C stops
    it; the same command goes on, and shows a finished demo again.

    Args:
        data: letters: set in the typefaces of matplotlib, no download. omniglot: handwriting, from
            omniglot.parquet in the folder $PRISM_DATA, else downloaded (16 MB).
        out: Folder for everything; runs/demo if not given, runs/demo-omniglot for omniglot.
        noise_rate: Share of the training labels, in [0, 1), that is made wrong. The methods are not told.
        seed: Of the choice of letters, of the wrong labels and of the training.
        json: Print the result as JSON.

    Raises:
        ValueError: the folder holds something else, or the data cannot be had.
    """
    from prism_dml.benchmark import run_demo

    folder = out or Path("runs", "demo" if data == "letters" else f"demo-{data}")
    result = run_demo(
        data, folder, seed, noise_rate, lambda line: print(_wrapped(line), file=sys.stderr, flush=True)
    )
    if json:
        print_json({"out": str(folder), **result})
    else:
        _show(result, folder)


def _show(result: dict[str, Any], folder: Path) -> None:
    from prism_dml.benchmark import MODEL_NAMES, summarise

    rows = []
    for name, title in MODEL_NAMES.items():
        model = result["models"][name]
        low, high = model["intervals"]["precision_at_1"]
        precision, map_at_r = f"{model['precision_at_1']:.3f}", f"{model['map_at_r']:.3f}"
        rows.append((title, precision, f"{low:.3f} to {high:.3f}", map_at_r))
    for name, shares in result["gap_closed"].items():
        closed = {metric: "-" if share is None else f"{share:.0%}" for metric, share in shares.items()}
        title = f"gap closed by {MODEL_NAMES[name]}"
        rows.append((title, closed["precision_at_1"], "", closed["map_at_r"]))
    print_table(
        f"Retrieval of {result['test_classes']} characters never seen in training",
        ("Trained with", "Precision@1", "95 % interval", "MAP@R"),
        rows,
    )
    print(_wrapped(summarise(result)) + "\n")
    print_table(
        f"The {len(result['suspects'])} labels that look most wrong",
        ("Image", "Given", "Suggested", "P(clean)", "Truth"),
        [
            (
                suspect["path"],
                suspect["label"],
                suspect["suggested_label"],
                _probability(suspect["clean_probability"]),
                "wrong" if suspect["is_wrong"] else "right",
            )
            for suspect in result["suspects"]
        ],
    )
    model = folder / "refract"
    print(f"Pictures and all of this: {folder / 'report.html'}")
    print(f"Judgement on every training label: {folder / 'samples.csv'}")
    command = shlex.join(["prism", "evaluate", str(model), str(folder / "data.parquet")])
    print(f"The model: {model}; try: {command}")


def _probability(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, min(shutil.get_terminal_size().columns, 100))
