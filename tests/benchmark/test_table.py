import pytest

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


def cells(text):
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: [cell.strip() for cell in row[1:]] for row in rows}


def test_the_numbers(finished, tmp_path):
    protocol, places, results = finished
    write_table(
        tmp_path / "table.md", protocol, places, results, Facts("prism benchmark x", ["plots/a.png"], [])
    )
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
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


def test_rows_of_another_machine_are_named(finished, tmp_path):
    protocol, places, results = finished
    for place in places:
        if place.row.name == "PRISM" or (place.row.name == "Oracle" and place.seed == 1):
            results[place.job.key]["machine"] = "another"
    write_table(tmp_path / "table.md", protocol, places, results, Facts("x", [], []))
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
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
    write_table(tmp_path / "table.md", protocol, places, results, Facts("x", [], [failure]))
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert cells(text)["Oracle"][:2] == ["1", "0.800"]
    assert cells(text)["PRISM"][3] == "0.50"  # of seed 0 alone
    assert "- tiny, symmetric 50%, seed 1, Oracle (run): ValueError: no" in text
    write_table(tmp_path / "table.md", protocol, places, {}, Facts("x", [], []))
    assert "Nothing is finished yet." in (tmp_path / "table.md").read_text(encoding="utf-8")


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
        write_table(tmp_path / "table.md", protocol, places, results, Facts("x", [], []))
        text = (tmp_path / "table.md").read_text(encoding="utf-8")
        assert ("below raw pixels" in text) == (words is not None) and (words or "") in text


def test_no_gap_where_the_oracle_is_not_better(finished, tmp_path):
    protocol, places, results = finished
    for place in places:
        if place.row.name == "Oracle":
            results[place.job.key] = record(0.1)
    write_table(tmp_path / "table.md", protocol, places, results, Facts("x", [], []))
    assert cells((tmp_path / "table.md").read_text(encoding="utf-8"))["PRISM"][3] == ""


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
    drawn = draw_plots(protocol, places, [], results, tmp_path)
    assert [file.name for file in drawn] == [
        "tiny_symmetric_precision.png",
        "tiny_symmetric_precision_0.5.png",
    ]
    assert all(file.stat().st_size for file in drawn)
