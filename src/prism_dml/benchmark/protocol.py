"""A protocol: what is compared on what, and in which order. Read from YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml

from prism_dml.benchmark.fields import from_yaml
from prism_dml.files import at_home
from prism_dml.methods.base import Method
from prism_dml.methods.registry import find_method
from prism_dml.training.config import TrainConfig

SHIPPED = files("prism_dml.benchmark").joinpath("protocols")
RAW_PIXELS = "raw-pixels"
"""The method of a row that is not trained: unit-length pixels."""
KNOWN = "known"
"""A noise rate that is told as it truly is."""

Noise = Literal["none", "given", "symmetric", "pair", "small-cluster", "open-set"]


@dataclass
class DataSet:
    """A data set of the comparison.

    Args:
        name: How tables call it.
        path: A file or folder as `prism train` takes it, no pattern or URL; $VARIABLES are filled in.
        test: Data set whose split "test" is searched instead of the data set's own.
        recipe: Settings of training on it, for every row.
    """

    name: str
    path: str
    test: str | None = None
    recipe: dict[str, Any] = field(default_factory=dict)


@dataclass
class Row:
    """A row of the table.

    Args:
        name: How tables call it.
        method: A method's name, or raw-pixels.
        labels: given, or clean: the true labels, the ceiling.
        settings: Settings of the method as published; noise_rate may be known: told as it truly is. A row with an lr
            of its own is not tuned.
        tuned_as: Method whose learning rate is taken; its own if not given.
        group: Rows of one group are compared with the other groups.
    """

    name: str
    method: str
    labels: Literal["given", "clean"] = "given"
    settings: dict[str, Any] = field(default_factory=dict)
    tuned_as: str | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        """ValueError on an unknown method."""
        for name in {self.method, self.tuned_as} - {RAW_PIXELS, None}:
            find_method(str(name))

    @property
    def tuning_group(self) -> str:
        """The method whose learning rate the row takes."""
        return self.tuned_as or self.method

    @property
    def is_tuned(self) -> bool:
        """Whether a learning rate is chosen for it; not if it has one of its own."""
        return self.method != RAW_PIXELS and not {"lr", "proxy_lr"} & self.settings.keys()

    @property
    def is_noise_free(self) -> bool:
        """Whether wrong labels do not touch it: it is trained on the true ones only, or not at all."""
        return self.method == RAW_PIXELS or self.labels == "clean"

    @property
    def is_reference(self) -> bool:
        """Whether it knows the truth or is not trained: the lines that others are measured against."""
        return self.is_noise_free or find_method(self.method).clean_only


@dataclass
class Block:
    """A part of the grid: data sets x rows x seeds at one noise.

    Args:
        noise: Kind of wrong labels; none: right ones; given: those that the data set has.
        rate: Share of wrong labels, of dissolved classes for small-cluster and open-set; for given, what rows are told.
        seeds: Of noise and training.
        data: Data sets by name; all if not given.
        rows: Rows by name; all if not given.
        without: Rows that are left out.
    """

    noise: Noise
    rate: float | None = None
    seeds: list[int] = field(default_factory=lambda: [0])
    data: list[str] | None = None
    rows: list[str] | None = None
    without: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """ValueError on a value outside its range."""
        if self.noise not in ("none", "given") and self.rate is None:
            raise ValueError(f"{self.noise} noise needs a rate")
        if self.rate is not None and not 0 <= self.rate < 1:
            raise ValueError(f"rate must be in [0, 1), not {self.rate}")
        if not self.seeds or min(self.seeds) < 0:
            raise ValueError(f"seeds must be whole numbers, 0 or more, not {self.seeds}")


@dataclass
class Tuning:
    """The rule by which learning rates are chosen, one for all rows.

    Args:
        noise: Kind of wrong labels.
        rate: Its rate.
        lr: Rates that are tried for methods without proxies.
        lr_with_proxies: Pairs of rates, of the network and of the proxies, for methods that have proxies; as many.
        seed: Of noise, training and the choice of what is set aside.
        validation: Share of the training classes set aside; of the training images, if the test split has the training
            classes.
        steps: Share of the steps of the recipe.
    """

    noise: Noise
    lr: list[float]
    lr_with_proxies: list[list[float]]
    rate: float | None = None
    seed: int = 0
    validation: float = 0.2
    steps: float = 0.5

    def __post_init__(self) -> None:
        """ValueError on a value outside its range."""
        Block(self.noise, self.rate, [self.seed])
        if not self.lr or len(self.lr) != len(self.lr_with_proxies):
            raise ValueError("lr and lr_with_proxies must have equally many rates, one or more")
        if any(len(pair) != 2 for pair in self.lr_with_proxies):
            raise ValueError("lr_with_proxies must be pairs: of the network and of the proxies")
        if not 0 < self.validation < 1 or not 0 < self.steps <= 1:
            raise ValueError("validation must be in (0, 1) and steps in (0, 1]")

    def candidates(self, method: str) -> list[dict[str, float]]:
        """The settings that are tried for a method."""
        if not has_proxies(method):
            return [{"lr": lr} for lr in self.lr]
        return [{"lr": lr, "proxy_lr": proxy_lr} for lr, proxy_lr in self.lr_with_proxies]


@dataclass
class Protocol:
    """A comparison.

    Args:
        data: Data sets.
        rows: Rows of the table, in order.
        grid: Blocks of runs, in the order of running.
        recipe: Settings of training for every data set and row; a data set's, then a row's, win. `weights` are looked
            for where data are.
        tuning: How learning rates are chosen; not at all if not given.
        description: Words for the head of the table.
    """

    data: list[DataSet]
    rows: list[Row]
    grid: list[Block]
    recipe: dict[str, Any] = field(default_factory=dict)
    tuning: Tuning | None = None
    description: str = ""

    def __post_init__(self) -> None:
        """ValueError on names that are twice or not there, and on settings that do not fit."""
        for what, names in (("data", self.data_names), ("rows", self.row_names)):
            if not names or len(set(names)) < len(names):
                raise ValueError(f"{what}: one or more are needed, each with a name of its own")
        for place, block in enumerate(self.grid):
            for what, wanted, names in (
                ("data", block.data or [], self.data_names),
                ("rows", [*(block.rows or []), *block.without], self.row_names),
            ):
                unknown = [name for name in wanted if name not in names]
                if unknown:
                    raise ValueError(f"grid[{place}].{what}: there is no '{unknown[0]}' among {what}")
        if not self.grid:
            raise ValueError("grid: one block or more is needed")
        for data in self.data:
            for row in self.rows:
                self.config(data, row)
        for row in self.rows if self.tuning else []:
            if row.is_tuned:
                self.representative(row)

    @property
    def data_names(self) -> list[str]:
        """Names of the data sets, in order."""
        return [data.name for data in self.data]

    @property
    def row_names(self) -> list[str]:
        """Names of the rows, in order."""
        return [row.name for row in self.rows]

    def config(self, data: DataSet, row: Row, **changes: Any) -> TrainConfig:
        """Settings of a row's training on a data set; a noise rate that is told as it truly is counts as 0."""
        settings = {**self.recipe, **data.recipe, **row.settings, **changes}
        where = f"settings of '{row.name}' on {data.name}"
        method = {} if row.method == RAW_PIXELS else {"method": row.method}
        if settings.get("noise_rate") == KNOWN:
            settings["noise_rate"] = 0.0
        config: TrainConfig = from_yaml(TrainConfig, settings | method, where)
        return config

    def representative(self, row: Row) -> Row:
        """The row on which the learning rate of a row's method is chosen: the first of the method."""
        for other in self.rows:
            if other.method == row.tuning_group and other.labels == "given" and other.is_tuned:
                return other
        raise ValueError(f"rows: '{row.name}' is tuned as {row.tuning_group}, of which there is no row")


def has_proxies(method: str) -> bool:
    """Whether a method has parameters with a learning rate of their own."""
    return find_method(method).proxies is not Method.proxies


def load_protocol(name: str) -> Protocol:
    """A protocol from a YAML file, or one of those that come with Prism, such as quick/grocery.

    A file may say `extends: FILE`: the fields of that file, beside it, hold where it has none of its own.

    Raises:
        ValueError: there is no such file, or something in it is wrong; names the field.
    """
    file = at_home(name)
    if file.is_file():
        return _load(file, str(file))
    if name in shipped_protocols():
        return _load(Path(str(SHIPPED / f"{name}.yaml")), name)
    known = ", ".join(shipped_protocols())
    raise ValueError(f"there is no protocol {name}: it is neither a file nor one of {known}")


def shipped_protocols() -> list[str]:
    """Names of the protocols that come with Prism."""
    root = Path(str(SHIPPED))
    return sorted(file.relative_to(root).with_suffix("").as_posix() for file in root.glob("*/*.yaml"))


def _load(file: Path, where: str) -> Protocol:
    protocol: Protocol = from_yaml(Protocol, _fields(file), where)
    return protocol


def _fields(file: Path, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The fields of a file, and of the file that it extends."""
    if file.resolve() in extended_by:
        raise ValueError(f"{file}: it extends itself")
    try:
        held = yaml.safe_load(file.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{file}: not YAML: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no UTF-8, a date or a number that is none
        raise ValueError(f"{file}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(held, dict):
        raise ValueError(f"{file}: expected fields with values")
    base = held.pop("extends", None)
    if base is None:
        return held
    if not (file.parent / str(base)).is_file():
        raise ValueError(f"{file}: extends: there is no file {base}")
    return {**_fields(file.parent / str(base), (*extended_by, file.resolve())), **held}
