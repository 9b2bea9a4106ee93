import json
from dataclasses import replace
from pathlib import Path

import pytest

from prism_dml.benchmark import plots
from prism_dml.benchmark.grid import Comparison
from prism_dml.benchmark.jobs import all_tuning_jobs, grid_jobs
from prism_dml.benchmark.plots import draw_plots
from prism_dml.benchmark.table import Facts, spread, write_table

PRECISION = {"MCL": (0.2, 0.4), "PRISM": (0.5, 0.5), "Oracle": (0.8, 0.6), "All clean": (0.9, 0.9)}


def record(precision, **more):
    return {
        "metrics": {"precision_at_1": precision, "map_at_r": precision / 2}, "seconds": 10.0,
        "machine": "a machine", "versions": "prism-dml 1", "told": "auto", "estimated": None, "purity": None,
        "wrong_found": None, "noise": 0.5,
        "validation": [], "curves": {"step": [1, 2], "rejected": [0.0, 0.0]}, **more,
    }  # fmt: skip


@pytest.fixture
def finished(protocol_of, fields):
    """A protocol, its places and made-up results."""
    fields["tuning"] = {"noise": "none", "lr": [1e-3, 2e-3], "lr_with_proxies": [[1, 1], [2, 2]]}
    protocol = protocol_of(fields)
    places = grid_jobs(protocol, lambda data, row: {})
    results = {
        job.key: {"validation": [[1, 0.1], [2, job.settings["lr"]]]} for job in all_tuning_jobs(protocol)
    }
    for place in places:
        if place.row.name == "Raw pixels":
            results[place.job.key] = record(0.3)
        else:
            results[place.job.key] = record(PRECISION[place.row.name][place.seed])
        if place.row.name == "PRISM":
            curves = {
                "step": [1, 2],
                "rejected": [0.0, 0.5],
                "purity": [0.5, None],
                "clean_recall": [1.0, 0.75],
            }
            found = {"purity": 0.75, "wrong_found": 0.6, "estimated": 0.4 + place.seed / 10, "curves": curves}
            results[place.job.key] |= found | {"auroc": 0.98}
    return protocol, places, results


def written(folder, *finished, pictures=(), failed=()):
    """The table of a comparison, as text."""
    write_table(folder / "table.md", *finished, Facts("prism benchmark x", pictures, failed, 3, 3))
    return (folder / "table.md").read_text(encoding="utf-8")


def drawn(monkeypatch, protocol, places, results):
    """The axes of each picture, by the file's name."""
    pictures = {}

    def keep(figure, axes, file):
        pictures[file.name] = axes
        return [file]

    monkeypatch.setattr(plots, "_write", keep)
    draw_plots(protocol, places, [], results, Path())
    return pictures


def cells(text):
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: [cell.strip() for cell in row[1:]] for row in rows}


def test_the_numbers(finished, tmp_path):
    text = written(tmp_path, *finished, pictures=["plots/a.png"])
    rows = cells(text)
    assert rows["MCL"][:5] == ["2", "0.300 ± 0.141", "0.150 ± 0.071", "0.00 ± 0.00", "0.00 ± 0.00"]
    # (0.5 - 0.2) / (0.8 - 0.2) = 0.5 and (0.5 - 0.4) / (0.6 - 0.4) = 0.5, seed by seed
    assert rows["PRISM"][:3] == ["2", "**0.500 ± 0.000**", "**0.250 ± 0.000**"]
    assert rows["PRISM"][3:7] == ["0.50 ± 0.00", "0.50 ± 0.00", "0.60 ± 0.00", "0.75 ± 0.00"]
    assert rows["PRISM"][7:] == ["0.980 ± 0.000", "0.45 ± 0.07", "10"]
    assert rows["Oracle"][1] == "0.700 ± 0.141" and rows["Oracle"][3] == "1.00 ± 0.00"
    assert rows["All clean"][3] == "1.83 ± 0.94"
    assert rows["Raw pixels"][:2] == ["", "0.300"]  # one run for both seeds
    assert "- a: MCL, 0.300" in text and "- b: PRISM, 0.500" in text
    assert "    prism benchmark x\n" in text and "a machine" in text and "prism-dml 1" in text
    assert "| tiny | mcl | 0.001: 0.001; 0.002: 0.002 | 0.002 |" in text
    assert "out of 2" in text and "![a](plots/a.png)" in text and "## Failed" not in text
    assert "runs are done" not in text and "Not run here" not in text and "Not with all seeds" not in text


def test_rows_of_another_machine_are_named(finished, tmp_path):
    protocol, places, results = finished
    for place in places:
        if place.row.name == "PRISM" or (place.row.name == "Oracle" and place.seed == 1):
            results[place.job.key]["machine"] = "another"
    text = written(tmp_path, protocol, places, results)
    assert "\nMachine: a machine.\nMachine: another: PRISM, part of Oracle.\n" in text
    assert text.count("Versions: ") == 1


def test_what_is_missing_or_failed(finished, tmp_path):
    protocol, places, results = finished
    oracle = next(p.job.key for p in places if p.row.name == "Oracle" and p.seed == 1)
    failure = {
        "data": "tiny", "noise_kind": "symmetric", "rate": 0.5, "seed": 1, "row": "Oracle", "kind": "run",
        "error": "ValueError: no",
    }  # fmt: skip
    del results[oracle]
    text = written(tmp_path, protocol, places, results, failed=[failure])
    assert cells(text)["Oracle"][:2] == ["1", "0.800"]
    assert cells(text)["PRISM"][3:5] == ["0.50 (1 seed)"] * 2 and cells(text)["Oracle"][3] == "1.00"
    assert "\nNot with all seeds: Oracle.\n" in text
    assert "- tiny, symmetric 50%, seed 1, Oracle (run): ValueError: no" in text
    assert "Nothing is finished yet." in written(tmp_path, protocol, places, {})


def test_a_comparison_that_is_not_whole_says_so(finished, tmp_path):
    protocol, places, results = finished
    for place in places:
        if place.row.name in ("PRISM", "All clean"):
            results.pop(place.job.key, None)
    lines = [json.dumps(result | {"key": key, "error": None}) + "\n" for key, result in results.items()]
    (tmp_path / "results.jsonl").write_text("".join(lines), encoding="utf-8")
    Comparison(replace(protocol, tuning=None), tmp_path, "prism benchmark x").write()
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "\n5 of 9 runs are done; what is missing is said below each table.\n" in text
    assert "\nNot run here: PRISM; All clean.\n" in text
    pixels = {place.job.key for place in places if place.row.name == "Raw pixels"}
    rest = {key: result for key, result in results.items() if "metrics" not in result or key in pixels}
    text = written(tmp_path, protocol, places, rest)
    assert "\nNot run here: 4 more rows that are planned.\n" in text


def test_nothing_is_best_that_has_no_rival(finished, tmp_path):
    protocol, places, results = finished
    for place in places:
        if place.row.name == "MCL":
            del results[place.job.key]
    assert cells(written(tmp_path, protocol, places, results))["PRISM"][1] == "0.500 ± 0.000"


def test_rows_below_raw_pixels_are_named(finished, tmp_path):
    protocol, places, results = finished
    for floor, words in [
        (0.1, None),
        (0.4, "below raw pixels: MCL."),
        (0.6, "below raw pixels: MCL, PRISM."),
    ]:
        for place in places:
            if place.row.name == "Raw pixels":
                results[place.job.key] = record(floor)
        text = written(tmp_path, protocol, places, results)
        assert ("below raw pixels" in text) == (words is not None) and (words or "") in text


def test_no_gap_where_the_oracle_is_not_better(finished, tmp_path):
    protocol, places, results = finished
    for place in places:
        if place.row.name == "Oracle":
            results[place.job.key] = record(0.1)
    assert cells(written(tmp_path, protocol, places, results))["PRISM"][3] == ""


def test_pictures(finished, tmp_path):
    protocol, places, results = finished
    files = draw_plots(protocol, places, all_tuning_jobs(protocol), results, tmp_path / "plots")
    names = ["tiny_symmetric_precision.png", "tiny_symmetric_0.5_kept.png", "tiny_learning.png"]
    assert [file.name for file in files] == names
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
    assert draw_plots(protocol, places, [], {}, tmp_path / "none") == [] and not (tmp_path / "none").exists()


def test_spread():
    assert (spread([]), spread([0.5]), spread([0.25, 0.75], 2)) == ("", "0.500", "0.50 ± 0.35")


def test_many_rows_are_drawn_one_below_the_other_and_only_those_of_several_rates_as_curves(
    protocol_of, fields, tmp_path
):
    fields["rows"] = [{"name": f"row {i}", "method": "mcl"} for i in range(12)]
    fields["grid"] = [
        {"noise": "symmetric", "rate": 0.5},
        {"noise": "symmetric", "rate": 0.2, "rows": ["row 3"]},
    ]
    protocol = protocol_of(fields)
    places = grid_jobs(protocol, lambda data, row: {"lr": 1e-3 * (1 + int(row.name.split()[1]))})
    results = {place.job.key: record(0.5) for place in places}
    pictures = draw_plots(protocol, places, [], results, tmp_path)
    assert [file.name for file in pictures] == [
        "tiny_symmetric_precision.png",
        "tiny_symmetric_precision_0.5.png",
    ]
    assert all(file.stat().st_size for file in pictures)


@pytest.fixture
def uneven(protocol_of, fields):
    """Two rates, all seeds at one of them only: a protocol, its places and made-up results."""
    fields["grid"] = [
        {"noise": "symmetric", "rate": 0.5, "seeds": [0, 1]},
        {"noise": "symmetric", "rate": 0.2, "seeds": [0]},
    ]
    protocol = protocol_of(fields)
    places = grid_jobs(protocol, lambda data, row: {})
    results = {
        place.job.key: record(PRECISION.get(place.row.name, (0.3, 0.3))[place.seed] + place.seed / 100)
        for place in reversed(places)
    }
    return protocol, places, results


def test_what_no_wrong_label_touches_is_a_level_of_all_its_seeds(uneven, monkeypatch):
    axes = drawn(monkeypatch, *uneven)["tiny_symmetric_precision.png"]
    levels = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert levels["All clean"] == pytest.approx([0.905, 0.905])
    assert levels["Raw pixels (one run)"] == [0.3, 0.3]
    assert {bar.get_label() for bar in axes.containers} == {"MCL", "PRISM", "Oracle"}


def test_points_of_one_run_are_hollow_and_have_no_whisker(uneven, monkeypatch):
    axes = drawn(monkeypatch, *uneven)["tiny_symmetric_precision.png"]
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    assert [list(line.get_xdata()) for line in hollow] == [[0.2]] * 3
    assert axes.get_ylabel().endswith("hollow: one run")
    whiskers = {bar.get_label(): bar.lines[2][0].get_segments() for bar in axes.containers}
    assert [len(ends) for ends in whiskers["MCL"]] == [0, 2]


def test_a_ranking_has_hollow_points_too_and_levels_of_seeds_that_are_not_in_it(uneven, monkeypatch):
    protocol, places, results = uneven
    few = [p for p in places if p.rate == 0.2 or p.row.is_reference]
    axes = drawn(monkeypatch, protocol, few, results)["tiny_symmetric_precision.png"]
    (hollow,) = (line for line in axes.lines if line.get_markerfacecolor() == "white")
    assert list(hollow.get_ydata(orig=True)) == ["MCL", "Raw pixels", "PRISM", "Oracle"]
    assert axes.get_xlabel() == "Precision@1: mean and standard deviation over the seeds; hollow: one run"


def test_references_alone_are_no_picture(uneven, monkeypatch):
    protocol, places, results = uneven
    assert drawn(monkeypatch, protocol, [p for p in places if p.row.is_reference], results) == {}
