"""Settings of a run with anything in them: one line, never a traceback."""

import dataclasses
import json
import re

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prism_dml.cli.main import main
from prism_dml.training.config import TrainConfig

FIELDS = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
ODD = [
    *(
        None,
        True,
        False,
        0,
        -1,
        3,
        10**400,
        1.5,
        1e38,
        1e999,
        -1e999,
        "",
        "auto",
        "1e-3",
        "nan",
        ".nan",
        "ü",
        "a\nb",
    ),
    *(
        [],
        [1],
        {},
        {"lr": 1},
        {"init_args": {}},
        "!!python/name:os.system",
        "small",
        "prism-mcl",
        "\u2028",
        "0x10",
        "1_0",
    ),
]
TEXTS = [
    "",
    "[",
    "- a",
    "3",
    "a: *b",
    "\0",
    "lr: 1\nlr: 2",
    "lr: 2001-99-99",
    "lr: 9" + "9" * 5000,
    "config: x.yaml",
    "? [a]\n: b",
]
TEXTS += [
    "lr: &a [*a]",
    "&a lr: *a",
    "[" * 3000,
    "\ttabs",
    "steps: 0x",
    "data: other",
    "out: [1]",
    "json: 3",
    "3: 4",
    "null: 4",
]
QUIET = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check(file, capsys) -> None:
    """The data is not there, so that even good settings end with one line."""
    status = main(
        ["train", str(file.parent / "nothing"), "--config", str(file), "--out", str(file.parent / "run")]
    )
    error = capsys.readouterr().err
    *warnings, last = error.splitlines()  # settings that have no effect are named first
    assert status == 2 and last.startswith("prism: error: ") and error.endswith("\n"), error
    assert all(
        re.fullmatch(r"prism: warning: --\S+ has no effect on method \S+", line) for line in warnings
    ), error
    assert not (file.parent / "run").exists()


@QUIET
@given(
    values=st.dictionaries(
        st.sampled_from([*FIELDS, "lrr", "", "data"]), st.sampled_from(ODD), min_size=1, max_size=3
    )
)
def test_any_setting_may_be_anything(values, tmp_path, capsys) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(json.dumps(values), encoding="utf-8")  # which is YAML
    check(file, capsys)


def test_data_without_a_name_are_not_the_folder_at_hand(tmp_path, capsys) -> None:
    file = tmp_path / "c.yaml"
    file.write_text('{"data": ""}', encoding="utf-8")
    check(file, capsys)


@QUIET
@given(text=st.sampled_from(TEXTS) | st.text(max_size=20))
def test_any_text(text, tmp_path, capsys) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    check(file, capsys)


@settings(max_examples=300, deadline=None)
@given(
    values=st.fixed_dictionaries(
        {},
        optional={
            name: st.floats() if isinstance(default, float) else st.integers(-2, 9)
            for name, default in FIELDS.items()
            if isinstance(default, int | float) and not isinstance(default, bool)
        },
    )
)
def test_what_the_settings_accept_is_finite_and_in_range(values) -> None:
    try:
        config = TrainConfig(**values)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    for name in ("lr", "proxy_lr", "weight_decay", "bank_weight"):
        assert 0 <= getattr(config, name) < float("inf")
    assert config.steps > 0 and 0 <= config.validation < 1 and -1 <= config.margin < 1
