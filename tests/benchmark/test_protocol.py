import copy

import pytest

from prism_dml.benchmark import load_protocol, shipped_protocols
from prism_dml.benchmark.jobs import all_tuning_jobs, choose, grid_jobs, tuning_jobs

TUNING = {
    "noise": "symmetric", "rate": 0.5, "lr": ["1e-4", 1e-3], "lr_with_proxies": [[1e-3, 1e-2], [1e-3, 1e-1]],
}  # fmt: skip


def runs(protocol):
    return [place.job for place in grid_jobs(protocol, lambda data, row: {})]


@pytest.mark.parametrize("name", shipped_protocols())
def test_every_shipped_protocol_loads(name):
    protocol = load_protocol(name)
    assert len(protocol.rows) == {"longer": 10, "pretrained": 12, "frozen": 21}.get(name.split("/")[0], 31)
    assert runs(protocol)
    if name.startswith("quick/"):
        assert len(protocol.tuning.candidates("mcl")) == len(protocol.tuning.candidates("soft-triple"))
        assert all(
            protocol.config(data, row).validation == 0 for data in protocol.data for row in protocol.rows
        )


def test_the_protocols_of_the_paper_for_two_cores_and_for_a_gpu_are_there():
    paper = [f"paper/{name}" for name in ("cars", "cars98n", "cub", "food101n", "sop")]
    quick = [f"quick/{name}" for name in ("cifar100_sub", "cifar10n_worse", "grocery", "omniglot")]
    frozen = [f"frozen/{name}" for name in ("cifar100_sub", "cifar10n_worse", "grocery", "omniglot")]
    pretrained = [f"pretrained/{name}" for name in ("cifar100_sub", "grocery")]
    known = [*frozen, "gpu/grocery", "longer/cifar10n_worse", *paper, *pretrained, *quick]
    assert shipped_protocols() == known


def set_at(fields, path, value):
    fields = copy.deepcopy(fields)
    place = fields
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return fields


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("rows", 0, "metod"), "mcl", r"rows\[0\]: unknown field 'metod': did you mean method"),
        (("rows", 1, "method"), "prism", r"rows\[1\]: unknown method 'prism'"),
        (("rows", 1, "name"), "MCL", "rows: one or more are needed, each with a name of its own"),
        (("rows", 1, "settings"), {"similarity": "far"}, "'PRISM' on tiny.similarity: expected one of centre"),
        (("rows", 1, "settings"), {"window": 0}, "settings of 'PRISM' on tiny: window must be at least 1"),
        (("recipe", "steps"), "many", "tiny.steps: expected a whole number, not 'many'"),
        (("recipe", "stepz"), 3, "unknown field 'stepz': did you mean steps"),
        (("grid", 0, "rows"), ["MCM"], r"grid\[0\].rows: there is no 'MCM' among rows"),
        (("grid", 0, "data"), ["x"], r"grid\[0\].data: there is no 'x' among data"),
        (("grid", 0, "rate"), 1.5, r"grid\[0\]: rate must be in \[0, 1\)"),
        (("grid", 0, "rate"), None, r"grid\[0\]: symmetric noise needs a rate"),
        (("grid", 0, "seeds"), [], r"grid\[0\]: seeds must be whole numbers"),
        (("grid", 0, "noise"), "loud", r"grid\[0\].noise: expected one of none, given"),
        (("grid",), [], "grid: one block or more"),
        (("data", 0), "images", r"data\[0\]: expected fields with values, not 'images'"),
        (("data",), [{"name": "x"}], r"data\[0\]: the field 'path' is missing"),
        (("tuning",), {**TUNING, "lr": [1e-3]}, "tuning: lr and lr_with_proxies must have equally many"),
        (("tuning",), {**TUNING, "lr_with_proxies": [[1], [2]]}, "tuning: lr_with_proxies must be pairs"),
        (("tuning",), {**TUNING, "steps": 0}, r"tuning: validation must be in \(0, 1\)"),
    ],
)  # fmt: skip
def test_mistakes_name_the_field(protocol_of, fields, path, value, message):
    with pytest.raises(ValueError, match=message) as caught:
        protocol_of(set_at(fields, path, value))
    assert "\n" not in str(caught.value) and "protocol.yaml" in str(caught.value)


def test_unknown_protocols_and_files_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="there is no protocol quick/groceries: .* quick/grocery"):
        load_protocol("quick/groceries")
    file = tmp_path / "x.yaml"
    for text, message in [
        ("a: [", "not YAML"),
        ("- a", "expected fields"),
        ("extends: y.yaml", "no file y.yaml"),
        ("extends: x.yaml", "it extends itself"),
    ]:
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            load_protocol(str(file))


def test_own_fields_win_over_those_of_the_file_that_is_extended(tmp_path, protocol_of, fields):
    protocol_of(fields)
    file = tmp_path / "more.yaml"
    file.write_text(
        "extends: protocol.yaml\ndescription: more\ngrid: [{noise: none, seeds: [3]}]\n", encoding="utf-8"
    )
    protocol = load_protocol(str(file))
    assert (protocol.description, protocol.row_names[0]) == ("more", "MCL")
    assert [block.seeds for block in protocol.grid] == [[3]]


def test_seed_0_for_all_rows_and_more_for_some_in_the_order_of_the_blocks(protocol_of, fields):
    fields["grid"] = [
        {"noise": "symmetric", "rate": 0.5},
        {"noise": "symmetric", "rate": 0.5, "seeds": [0, 1], "rows": ["MCL", "PRISM"]},
    ]
    places = grid_jobs(protocol_of(fields), lambda data, row: {})
    assert [(place.row.name, place.seed) for place in places] == [
        ("MCL", 0), ("PRISM", 0), ("Oracle", 0), ("All clean", 0), ("Raw pixels", 0), ("MCL", 1), ("PRISM", 1),
    ]  # fmt: skip


def test_what_does_not_depend_on_the_noise_is_run_once(protocol_of, fields):
    fields["grid"] = [
        {"noise": noise, "rate": 0.5, "without": ["MCL", "PRISM", "Oracle"]}
        for noise in ("symmetric", "pair")
    ]
    clean, raw, clean_again, raw_again = runs(protocol_of(fields))
    assert clean.key == clean_again.key and raw.key == raw_again.key
    assert (clean.noise, clean.rate) == ("none", None)


def test_a_run_is_known_by_what_defines_it(protocol_of, fields):
    before = {job.row: job.key for job in runs(protocol_of(fields)) if job.seed == 0}
    for path, value, changed in [
        (("recipe", "workers"), 4, set()),
        (("recipe", "log_every"), 7, set()),
        (("data", 0, "name"), "small", set()),
        (("recipe", "steps"), 4, {"MCL", "PRISM", "Oracle", "All clean"}),
        (("rows", 1, "settings"), {"noise_rate": 0.5}, {"PRISM"}),
        (("grid", 0, "rate"), 0.25, {"MCL", "PRISM", "Oracle"}),
        (("data", 0, "path"), "other", {"MCL", "PRISM", "Oracle", "All clean", "Raw pixels"}),
    ]:
        after = {job.row: job.key for job in runs(protocol_of(set_at(fields, path, value))) if job.seed == 0}
        assert {row for row in before if before[row] != after[row]} == changed, path


def test_a_rate_is_chosen_once_for_each_method(protocol_of, fields):
    fields["tuning"] = TUNING
    fields["rows"] += [
        {"name": "PRISM, vmf", "method": "prism-mcl", "settings": {"similarity": "vmf"}},
        {"name": "SoftTriple", "method": "soft-triple"},
        {"name": "As published", "method": "contrastive", "settings": {"lr": 0.01}},
    ]
    protocol = protocol_of(fields)
    jobs = all_tuning_jobs(protocol)
    assert [(job.row, job.settings["lr"], job.settings.get("proxy_lr")) for job in jobs] == [
        ("MCL", 1e-4, None), ("MCL", 1e-3, None), ("PRISM", 1e-4, None), ("PRISM", 1e-3, None),
        ("SoftTriple", 1e-3, 1e-2), ("SoftTriple", 1e-3, 1e-1),
    ]  # fmt: skip
    assert all(job.settings["steps"] == 2 and job.settings["validation"] == 0.2 for job in jobs)
    data, rows = protocol.data[0], {row.name: row for row in protocol.rows}
    for name, as_in in [("Oracle", "MCL"), ("All clean", "MCL"), ("PRISM, vmf", "PRISM")]:
        assert tuning_jobs(protocol, data, rows[name]) == tuning_jobs(protocol, data, rows[as_in])
    assert (
        tuning_jobs(protocol, data, rows["As published"])
        == tuning_jobs(protocol, data, rows["Raw pixels"])
        == []
    )


def test_the_best_at_the_end_is_chosen_the_first_of_equals_and_failed_runs_never(protocol_of, fields):
    fields["tuning"] = {**TUNING, "lr": [1e-4, 1e-3, 1e-2], "lr_with_proxies": [[1, 1]] * 3}
    protocol = protocol_of(fields)
    jobs = tuning_jobs(protocol, protocol.data[0], protocol.rows[0])
    results = {
        job.key: {"validation": [[1, first], [2, last]]}
        for job, (first, last) in zip(jobs, [(0.9, 0.1), (0.2, 0.5), (0.3, 0.5)], strict=True)
    }
    assert choose(jobs, results) == {"lr": 1e-3}
    assert choose(jobs, {jobs[2].key: results[jobs[2].key]}) == {"lr": 1e-2}
    assert choose(jobs, {}) is None
    assert choose([], {}) == {}
