"""Command-line arguments from a function's signature and docstring, by jsonargparse."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
import re
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from jsonargparse import ActionYesNo, ArgumentParser, DefaultHelpFormatter

from prism_dml.files import at_home


def parse(function: Callable[..., object], program: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Parse a command's arguments.

    Parameters of the function before its ``*`` are positional arguments, which may be left out where they have a
    default, and repeated where they are lists; all others are options.
    The fields of a parameter whose type is a dataclass are options of their own. ``--config FILE`` reads
    options from YAML.

    Args:
        function: The command; its Google-style docstring is the help.
        program: What the user typed, such as ``"prism train"``.
        arguments: What follows it.

    Returns:
        The keyword arguments to call the function with.

    Raises:
        ValueError: An argument is unknown, missing or of the wrong type, or a dataclass refused its values.
    """
    parameters = inspect.signature(function).parameters
    types_of = get_type_hints(function)
    types_of.pop("return", None)
    configs: dict[str, Any] = {
        name: kind for name, kind in types_of.items() if dataclasses.is_dataclass(kind)
    }
    options = {name: parameter for name, parameter in parameters.items() if name not in configs}
    required = {name for name, option in options.items() if option.default is option.empty}
    parser = _Parser(
        prog=program,
        description=(inspect.getdoc(function) or "").split("\n\nArgs:")[0],
        formatter_class=_HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,  # an abbreviation of today is ambiguous tomorrow
        print_config="--print-config",
    )
    parser.positional = {
        name: _Place(
            name in required, get_args(types_of[name])[0] if get_origin(types_of[name]) is list else None
        )
        for name, option in options.items()
        if option.kind is not option.KEYWORD_ONLY
    }
    config_help = "Read options from a YAML file; those on the command line win."
    parser.add_argument("--config", action="config", metavar="FILE", help=config_help)
    parser.add_function_arguments(function, as_group=False, as_positional=True, skip=set(configs))
    for kind in configs.values():
        parser.add_class_arguments(kind, as_group=False)
        types_of |= get_type_hints(kind)
    parser.describe({name: _type_text(annotation) for name, annotation in types_of.items()}, required)
    try:
        values = parser.parse_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ValueError(parser.explain(error.message)) from error
    except OverflowError as error:  # a whole number of hundreds of digits, where any number is admitted
        raise ValueError("one of the options is a number that is too large") from error
    for name, kind in types_of.items():  # null in a file is let through, whatever the type
        if name not in configs and values[name] is None and not _admits_null(kind):
            raise ValueError(parser.explain(f'Parser key "{name}": Got value: null'))
    keywords = {name: _at_home(values[name]) for name in options}
    for name, kind in configs.items():
        fields = [field.name for field in dataclasses.fields(kind) if field.init]
        keywords[name] = kind(**{field: values[field] for field in fields})
    return keywords


def _at_home(value: Any) -> Any:
    """Paths with ~ written out, as a shell leaves it in --out=~/run and YAML has none to."""
    if isinstance(value, list):
        return [_at_home(one) for one in value]
    return at_home(value) if isinstance(value, Path) else value


_METAVARS = {"an integer": "N", "a number": "X", "a path": "PATH", "text": "TEXT"}


class _Place(NamedTuple):
    """How a positional argument stands on the command line."""

    required: bool
    repeated: type | None
    """The type of one, where there may be several."""


class _Parser(ArgumentParser):
    """jsonargparse's parser with our spelling: ``--noise-rate``, ``--json`` without a value, ``DATA``."""

    positional: dict[str, _Place]
    """The positional arguments."""

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        place = getattr(self, "positional", {}).get(names[0].removeprefix("--"))
        if place is not None:
            names = (names[0].removeprefix("--"),)
            options.pop("required", None)
            if place.repeated is not None:
                options.pop("action", None)  # jsonargparse's own takes the list as one argument
                options |= {"nargs": "+", "type": place.repeated}
            elif not place.required:
                options["nargs"] = "?"
        if not names[0].startswith("-"):
            options.setdefault("metavar", names[0].upper())
        elif options.get("type") is bool:
            del options["type"]
            options["action"] = ActionYesNo(no_prefix="no-")
        spelled = [name.replace("_", "-") if name.startswith("--") else name for name in names]
        action: argparse.Action = super().add_argument(*spelled, **options)
        return action

    def describe(self, type_texts: dict[str, str], required: set[str]) -> None:
        """Tell each argument its type in plain words and whether it is required, for its help and its errors."""
        self.type_texts = type_texts
        for action in self._actions:
            text = type_texts.get(action.dest, "")
            if action.option_strings and action.nargs != 0 and action.metavar is None:
                action.metavar = _METAVARS.get(text, "VALUE")
            notes = ["required"] if action.option_strings and action.dest in required else []
            if text and not text.startswith(("one of", "true or")):  # these stand beside the option already
                notes.append(text)
            if action.option_strings and action.default not in (None, argparse.SUPPRESS):
                notes.append("default: %(default)s")
            action.note = f" ({'; '.join(notes)})" if notes else ""  # type: ignore[attr-defined]

    def explain(self, message: str) -> str:
        """jsonargparse's message in the words of someone who typed options and knows no Python types."""
        spelling = {action.dest: _spelling(action) for action in self._actions}
        wrong = re.search(r'Parser key "(\w+)":.*?(?:Given|Got) value: ([^\n]*)\s*$', message, re.DOTALL)
        if wrong and wrong[1] in self.type_texts:
            return f"{spelling[wrong[1]]}: expected {self.type_texts[wrong[1]]}, got '{wrong[2]}'"
        # The second wording is that of jsonargparse before 4.48, which names one argument at a time.
        missing = re.match(r"the following arguments are required: (.*)", message) or re.match(
            r"Option '(\w+)' is required", message
        )
        if missing:
            return f"missing: {', '.join(spelling.get(name, name) for name in missing[1].split(', '))}"
        unknown = re.fullmatch(r"unrecognized arguments: (.*)", message, re.IGNORECASE | re.DOTALL)
        if unknown:
            options = [option for action in self._actions for option in action.option_strings]
            close = difflib.get_close_matches(unknown[1].split()[0].split("=")[0], options, n=1)
            return f"unknown argument '{unknown[1]}'" + (f": did you mean {close[0]}?" if close else "")
        if message.startswith("Unexpected config:"):
            return "--config: the file must hold options, one on each line, NAME: VALUE"
        message = re.sub(r'Parser key "(\w+)"', lambda key: spelling.get(key[1], key[1]), message)
        return message.replace(' in "<unicode string>",', "")


class _HelpFormatter(DefaultHelpFormatter):
    """Says what is required, of which type, and the default, without Python's own spelling of types."""

    def _get_help_string(self, action: argparse.Action) -> str:
        return (action.help or "") + getattr(action, "note", "")


def _admits_null(annotation: Any) -> bool:
    return annotation is Any or type(None) in get_args(annotation)


def _spelling(action: argparse.Action) -> str:
    return action.option_strings[0] if action.option_strings else action.dest.upper()


def _type_text(annotation: Any) -> str:
    """A type in plain words, such as ``number or auto``; empty where there is nothing to say."""
    plain = {int: "an integer", float: "a number", str: "text", Path: "a path", bool: "true or false"}
    if annotation in plain:
        return plain[annotation]
    members = [member for member in get_args(annotation) if member not in (type(None), Ellipsis)]
    origin = get_origin(annotation)
    if origin is Literal:
        return "one of " + ", ".join(str(member) for member in members)
    if origin in (Union, types.UnionType):
        return " or ".join(_type_text(member).removeprefix("one of ") for member in members)
    if origin in (list, tuple):
        return "a list of " + _type_text(members[0]).removeprefix("a ").removeprefix("an ") + "s"
    return ""
