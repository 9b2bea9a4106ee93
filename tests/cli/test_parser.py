from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from prism_dml.cli.parser import parse


@dataclass
class Settings:
    """Settings.

    Args:
        noise_rate: Share of wrong labels.
        bank_size: Embeddings remembered.
        pretrained: Start from weights.
        method: Which one.
    """

    noise_rate: float | Literal["auto"] = "auto"
    bank_size: int | None = None
    pretrained: bool = False
    method: Literal["prism", "plain"] = "prism"

    def __post_init__(self) -> None:
        if self.noise_rate != "auto" and not 0 <= self.noise_rate < 1:
            raise ValueError(f"noise_rate must be in [0, 1), not {self.noise_rate}")


def example(data: Path, config: Settings, *, out: Path, batch_size: int = 8, json: bool = False) -> None:
    """Do something.

    More of it.

    Args:
        data: What to read.
        config: How.
        out: What to write.
        batch_size: Images at once.
        json: Print JSON.

    Raises:
        ValueError: never.
    """


def parsed(*arguments):
    return parse(example, "prism example", arguments)


def error(*arguments):
    with pytest.raises(ValueError) as caught:
        parsed(*arguments)
    return str(caught.value)


def test_defaults():
    assert parsed("d", "--out", "o") == {
        "data": Path("d"), "config": Settings(), "out": Path("o"), "batch_size": 8, "json": False,
    }  # fmt: skip


def test_options_are_spelled_with_dashes():
    values = parsed("d", "--out=o", "--noise-rate", "0.3", "--batch-size", "2", "--bank-size", "7", "--json")
    assert values["config"] == Settings(noise_rate=0.3, bank_size=7)
    assert (values["batch_size"], values["json"]) == (2, True)


def test_union_with_a_word():
    assert parsed("d", "--out", "o", "--noise-rate", "auto")["config"].noise_rate == "auto"


def test_config_file_and_the_command_line_wins(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("noise_rate: 0.2\npretrained: true\nbatch_size: 3\n", encoding="utf-8")
    values = parsed("--config", str(file), "d", "--out", "o", "--noise-rate", "0.4", "--no-pretrained")
    assert values["config"] == Settings(noise_rate=0.4, pretrained=False)
    assert values["batch_size"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("d",), "missing: --out"),
        (
            ("d", "--out", "o", "--noise-rat", "1"),
            "unknown argument '--noise-rat 1': did you mean --noise-rate?",
        ),
        (("d", "e", "--out", "o"), "unknown argument 'e'"),
        (("d", "--out", "o", "--noise-rate", "high"), "--noise-rate: expected a number or auto, got 'high'"),
        (("d", "--out", "o", "--batch-size", "1.5"), "--batch-size: expected an integer, got '1.5'"),
        (("d", "--out", "o", "--method", "x"), "--method: expected one of prism, plain, got 'x'"),
        (("d", "--out", "o", "--noise-rate", "1.5"), "noise_rate must be in [0, 1), not 1.5"),
    ],
)
def test_mistakes_are_told_in_the_users_words(arguments, message):
    assert error(*arguments) == message


def test_a_number_of_hundreds_of_digits_is_one_line():
    def push(*, margin: float = 0.5) -> None:
        """Push.

        Args:
            margin: How far.
        """

    with pytest.raises(ValueError, match="too large"):
        parse(push, "prism push", ["--margin", "1" + "0" * 400])


def test_missing_arguments_are_named():
    message = error()  # an older jsonargparse names the first only
    assert message in ("missing: DATA, --out", "missing: --out", "missing: DATA")


def test_config_file_mistakes_name_what_is_wrong(tmp_path):
    assert "nowhere.yaml" in error("d", "--out", "o", "--config", "nowhere.yaml")
    file = tmp_path / "c.yaml"
    file.write_text("noise_rates: 0.2\n", encoding="utf-8")
    assert "noise_rates" in error("d", "--out", "o", "--config", str(file))
    file.write_text("batch_size: many\n", encoding="utf-8")
    assert error("d", "--out", "o", "--config", str(file)) == "--batch-size: expected an integer, got 'many'"
    for name, expected in [
        ("batch_size", "an integer"),
        ("noise_rate", "a number or auto"),
        ("method", "one of prism, plain"),
    ]:
        file.write_text(f"{name}: null\n", encoding="utf-8")
        spelled = f"--{name.replace('_', '-')}"
        assert (
            error("d", "--out", "o", "--config", str(file)) == f"{spelled}: expected {expected}, got 'null'"
        )
    file.write_text("bank_size: null\n", encoding="utf-8")
    assert parsed("d", "--out", "o", "--config", str(file))["config"] == Settings()


def test_help_has_types_defaults_and_no_python_spelling(capsys):
    with pytest.raises(SystemExit):
        parsed("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "Do something." in shown
    assert "Raises" not in shown
    assert "--noise-rate" in shown
    assert "noise_rate" not in shown.lower()
    assert "Share of wrong labels. (a number or auto; default: auto)" in shown
    assert "--batch-size N Images at once. (an integer; default: 8)" in shown
    assert "What to write. (required; a path)" in shown
    assert "<class" not in shown


def many(run: Path, data: Path | None = None, *, k: int = 3) -> None:
    """Do it.

    Args:
        run: A run.
        data: The data.
        k: How many.
    """


def several(run: Path, queries: list[Path], *, k: int = 3) -> None:
    """Do it.

    Args:
        run: A run.
        queries: One or more.
        k: How many.
    """


@pytest.mark.parametrize(
    ("words", "data"), [(["r"], None), (["r", "d"], Path("d")), (["--k", "4", "r", "d"], Path("d"))]
)
def test_a_positional_argument_with_a_default_may_be_left_out(words, data):
    assert parse(many, "prism many", words)["data"] == data


def test_a_positional_list_takes_all_that_follow():
    values = parse(several, "prism several", ["r", "a", "b c", "--k", "4"])
    assert values == {"run": Path("r"), "queries": [Path("a"), Path("b c")], "k": 4}
    with pytest.raises(ValueError, match="missing: QUERIES"):
        parse(several, "prism several", ["r"])
