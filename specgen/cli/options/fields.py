"""Reads the options of a command from its dataclass, and makes such a dataclass from the words of a command line.

A field `Annotated[type, Option(...)]` is an option. Another field whose type is a dataclass is a group of
options; names of fields are unique within a command, groups included. The class attribute `HEADING` of a group is the
heading of its options that name no other.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from specgen.cli.app_spec import GENERAL, HELP, Command, Option
from specgen.core.errors import SettingsError

T = TypeVar("T")

GivenNames = Annotated[frozenset[str], "given"]
"""Type of a field that receives the names of the options that the user gave, by command line or environment."""

_NUMBERS = {int: "an integer", float: "a number"}
_VALUES = {int: "N", float: "X", Path: "FILE"}


def options_of(options_class: type) -> tuple[Option, ...]:
    """Returns the options of a dataclass, those of its groups included."""
    return _read_options(options_class)  # mypy holds no type variable for hashable


@cache  # commands share groups, and every start asks for all of them
def _read_options(options_class: type) -> tuple[Option, ...]:
    hints = _types_of(options_class)
    found: list[Option] = []
    for field in fields(options_class):
        kind, *extras = get_args(hints[field.name]) or [hints[field.name]]
        if extras and isinstance(extras[0], Option):
            heading = extras[0].heading or getattr(options_class, "HEADING", GENERAL)
            found.append(_completed(replace(extras[0], heading=heading, field=field.name), kind, field.default))
        elif is_dataclass(kind):
            found += options_of(kind)  # type: ignore[arg-type]
    return tuple(found)


@cache
def _types_of(options_class: type) -> dict[str, Any]:
    return get_type_hints(options_class, include_extras=True)


def _completed(option: Option, kind: Any, default: Any) -> Option:
    """Fills in what follows from the type and the default of the option's field."""
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(one for one in get_args(kind) if one is not types.NoneType)
    is_tuple = get_origin(kind) is tuple
    kind = get_args(kind)[0] if is_tuple else kind
    is_switch = kind is bool or option.counts
    return replace(
        option,
        value="" if is_switch else option.value or _value_name(kind),
        kind=kind,
        default=None if option.counts else _shown_default(option, default),
        is_repeatable=is_tuple or option.counts,
        is_required=default is MISSING,
    )


def _value_name(kind: Any) -> str:
    return "|".join(get_args(kind)) if get_origin(kind) is Literal else _VALUES.get(kind, "TEXT")


def _shown_default(option: Option, default: Any) -> str | None:
    if isinstance(default, bool):
        shown = option.long_names if default else option.off_names
        return shown[0] if option.off_names else None
    return None if default in (None, "", (), MISSING) else str(default)


def describe(name: str, help_text: str, options_class: type, epilog: str = "") -> Command:
    """Returns the description of a command that takes the options of a dataclass."""
    options = [*options_of(options_class), HELP]
    argument = next((option for option in options if not option.names), None)
    return Command(name, help_text, argument, tuple(option for option in options if option.names), epilog)


def build(options_class: type[T], given: Mapping[str, Any], see: str) -> T:
    """Makes the dataclass of a command.

    Args:
        options_class: The dataclass; fields that are not in `given` keep their defaults.
        given: By field: a word, a list of words, or for switches True, False or how often it was given.
        see: Where to read about the options; ends the hint of an error.

    Raises:
        SettingsError: A word is not a value of its field's type, or out of range.
    """
    options = [option for option in options_of(options_class) if option.field in given]
    return _build(options_class, {option.field: _value(option, given[option.field], see) for option in options})


def _build(options_class: type[T], values: Mapping[str, Any]) -> T:
    hints = _types_of(options_class)  # type: ignore[arg-type]  # mypy holds no type variable for hashable
    made: dict[str, Any] = {name: value for name, value in values.items() if name in hints}
    for name, hint in hints.items():
        if is_dataclass(hint):
            made[name] = _build(hint, values)  # type: ignore[arg-type]
        elif hint == GivenNames:
            made[name] = frozenset(values)
    return options_class(**made)


def _value(option: Option, given: Any, see: str) -> Any:
    if not option.value:
        return given
    return tuple(_parse(option, word, see) for word in given) if option.is_repeatable else _parse(option, given, see)


def _parse(option: Option, word: str, see: str) -> Any:
    kind = option.kind
    if get_origin(kind) is Literal:
        words = get_args(kind)
        if word not in words:
            raise _invalid(option, word, f"{', '.join(words[:-1])} or {words[-1]}", see)
        return word
    if kind not in _NUMBERS:
        return kind(word)
    expected = ", ".join([_NUMBERS[kind], *([option.limits] if option.limits else [])])
    try:
        number = kind(word)
    except ValueError:
        raise _invalid(option, word, expected, see) from None
    # NaN is in no range.
    is_in_range = (option.minimum is None or number >= option.minimum) and (
        option.maximum is None or number <= option.maximum
    )
    if not is_in_range:
        raise _invalid(option, word, expected, see)
    return number


def _invalid(option: Option, word: str, expected: str, see: str) -> SettingsError:
    name = (option.long_names or [option.value])[0] + (f" (or {option.env})" if option.env else "")
    return SettingsError(f"invalid {name} {word!r}", f"give {expected}; {see}")
