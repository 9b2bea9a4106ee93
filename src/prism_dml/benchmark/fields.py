"""Dataclasses from what YAML holds, every mistake named by the field that it is in."""

from __future__ import annotations

import dataclasses
import difflib
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    types.NoneType: "null",
}


def from_yaml(kind: Any, value: Any, where: str) -> Any:
    """A value of a type, made of YAML's plain values.

    Args:
        kind: a dataclass, list, dict, Literal, union, int, float, str, bool, None or Any.
        value: what YAML holds.
        where: the field's name, for messages.

    Raises:
        ValueError: the value is not of the type; names the field.
    """
    origin, members = get_origin(kind), get_args(kind)
    plain = origin is None and isinstance(kind, type)  # to Python 3.10 list[int] is a type too
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, where)
    if origin in (Union, types.UnionType):
        return _union(kind, value, where)
    if origin is list and isinstance(value, list):
        return [from_yaml(members[0], item, f"{where}[{place}]") for place, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {str(key): from_yaml(members[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is Literal and value in members:
        return value
    if kind is float and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 takes 1e-3, which has no dot, for text
        except (TypeError, ValueError, OverflowError):
            pass
    elif plain and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise ValueError(f"{where}: expected {_describe(kind)}, not {value!r}")


def _dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected fields with values, not {value!r}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    hints = get_type_hints(kind)
    for name in value:
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(fields)}"
            raise ValueError(f"{where}: unknown field '{name}': {hint}")
    for name, field in fields.items():
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and name not in value:
            raise ValueError(f"{where}: the field '{name}' is missing")
    known = {name: from_yaml(hints[name], item, f"{where}.{name}") for name, item in value.items()}
    try:
        return kind(**known)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _union(kind: Any, value: Any, where: str) -> Any:
    members = [member for member in get_args(kind) if member is not types.NoneType]
    if value is not None and len(members) == 1:  # what is wrong inside is told best by the member itself
        return from_yaml(members[0], value, where)
    for member in get_args(kind):
        try:
            return from_yaml(member, value, where)
        except ValueError:
            continue
    raise ValueError(f"{where}: expected {_describe(kind)}, not {value!r}")


def _describe(kind: Any) -> str:
    """A type in plain words."""
    origin, members = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(str(member) for member in members)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(member) for member in members)
    if origin is list:
        return "a list"
    return "fields with values" if origin is dict else _NAMES.get(kind, str(kind))
