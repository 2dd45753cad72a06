"""Reads the options of a command from its dataclass, and makes such a dataclass from the words of a command line.

A field `Annotated[type, Option(...)]` is an option. A field whose type is a dataclass is a group of options; names of
fields are unique within a command, groups included. The class attribute `HEADING` of a group is the heading of its
options that name no other.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from specgen.cli.app_spec import GENERAL, HELP, Command, Option
from specgen.core.errors import SettingsError

T = TypeVar("T")

GivenNames = Annotated[frozenset[str], "given"]
"""Type of a field that receives the names of the options that the user gave, by command line or environment."""

_NUMBERS = {int: "an integer", float: "a number"}
_VALUES = {int: "N", float: "X", Path: "FILE"}


@dataclass(frozen=True, slots=True)
class OptionField:
    """A field that is an option.

    Args:
        name: Of the field.
        kind: Type of one value: str, int, float, bool, Path or a Literal.
        option: How it is typed, and what help says about it.
    """

    name: str
    kind: Any
    option: Option

    @property
    def is_argument(self) -> bool:
        """Whether it is given without a name."""
        return not self.option.names

    @property
    def is_switch(self) -> bool:
        """Whether it takes no value."""
        return self.kind is bool or self.option.counts


def option_fields(options_class: type) -> Iterator[OptionField]:
    """Yields the options of a dataclass, those of its groups included."""
    hints = get_type_hints(options_class, include_extras=True)
    for field in fields(options_class):
        kind, *extras = get_args(hints[field.name]) or [hints[field.name]]
        if is_dataclass(kind):
            yield from option_fields(kind)  # type: ignore[arg-type]
        elif extras and isinstance(extras[0], Option):
            heading = extras[0].heading or getattr(options_class, "HEADING", GENERAL)
            yield _option_field(field.name, kind, replace(extras[0], heading=heading), field.default)


def _option_field(name: str, kind: Any, option: Option, default: Any) -> OptionField:
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(one for one in get_args(kind) if one is not types.NoneType)
    is_tuple = get_origin(kind) is tuple
    kind = get_args(kind)[0] if is_tuple else kind
    is_switch = kind is bool or option.counts
    completed = replace(
        option,
        value="" if is_switch else option.value or _value_name(kind),
        default=None if option.counts else _shown_default(option, default),
        is_repeatable=is_tuple or option.counts,
        is_required=default is MISSING,
    )
    return OptionField(name, kind, completed)


def _value_name(kind: Any) -> str:
    return "|".join(get_args(kind)) if get_origin(kind) is Literal else _VALUES.get(kind, "TEXT")


def _shown_default(option: Option, default: Any) -> str | None:
    if isinstance(default, bool):
        shown = option.long_names if default else option.off_names
        return shown[0] if option.off_names else None
    return None if default in (None, "", (), MISSING) else str(default)


def describe(name: str, help_text: str, options_class: type, epilog: str = "") -> Command:
    """Returns the description of a command that takes the options of a dataclass."""
    found = list(option_fields(options_class))
    argument = next((field.option for field in found if field.is_argument), None)
    options = [field.option for field in found if not field.is_argument]
    return Command(name, help_text, argument, (*options, HELP), epilog)


def build(options_class: type[T], given: Mapping[str, Any], see: str) -> T:
    """Makes the dataclass of a command.

    Args:
        options_class: The dataclass; fields that are not in `given` keep their defaults.
        given: By field: a word, a list of words, or for switches True, False or how often it was given.
        see: Where to read about the options; ends the hint of an error.

    Raises:
        SettingsError: A word is not a value of its field's type, or out of range.
    """
    values = {
        field.name: _value(field, given[field.name], see)
        for field in option_fields(options_class)
        if field.name in given
    }
    return _build(options_class, values)


def _build(options_class: type[T], values: Mapping[str, Any]) -> T:
    hints = get_type_hints(options_class, include_extras=True)
    made: dict[str, Any] = {name: value for name, value in values.items() if name in hints}
    for name, hint in hints.items():
        if is_dataclass(hint):
            made[name] = _build(hint, values)  # type: ignore[arg-type]
        elif hint == GivenNames:
            made[name] = frozenset(values)
    return options_class(**made)


def _value(field: OptionField, given: Any, see: str) -> Any:
    if field.is_switch:
        return given
    if isinstance(given, list):
        return tuple(_parsed(field, word, see) for word in given)
    return _parsed(field, given, see)


def _parsed(field: OptionField, word: str, see: str) -> Any:
    option, kind = field.option, field.kind
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
    name = option.long_names[0] + (f" (or {option.env})" if option.env else "")
    return SettingsError(f"invalid {name} {word!r}", f"give {expected}; {see}")
