"""Typer's complaints about the words of a command line, in our own: what is wrong, the value, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specgen.cli.app_spec import Option, Program
from specgen.core.errors import SettingsError

_NUMBERS = {"int": "an integer", "float": "a number"}

_EXTRA = "Got unexpected extra argument(s)"


def usage_error(error: Exception, program: Program) -> SettingsError | None:
    """The error to tell.

    Args:
        error: Typer's, with a `format_message`; these have no public base class.
        program: What may be typed.

    Returns:
        None where there is nothing to tell: without any word at all.
    """
    context = getattr(error, "ctx", None)
    see = f"see {getattr(context, 'command_path', 'specgen')} --help"
    text = str(error.format_message()).replace(": Value error, ", ": ")  # type: ignore[attr-defined]
    if not text:
        return None
    if text.startswith(_EXTRA) and getattr(context, "info_name", "") == "generate":
        return SettingsError(
            f"there is more than one prompt{text[len(_EXTRA) :]}", f"put the prompt into quotes; {see}"
        )
    return _wrong_number(error, program, see) or SettingsError(text, see)


def _wrong_number(error: Exception, program: Program, see: str) -> SettingsError | None:
    """For a value that is no number or none of those allowed, which pydantic found; None for another error."""
    complaints = getattr(error.__cause__, "errors", None)
    names = getattr(getattr(error, "param", None), "opts", ())
    command = getattr(getattr(error, "ctx", None), "info_name", None)
    options = (one for each in program.commands if each.name == command for one in each.options)
    option = next((one for one in options if set(names) & set(one.names)), None)
    if option is None or not callable(complaints):
        return None
    complaint: Mapping[str, Any] = complaints()[0]
    kind, _, is_unread = str(complaint["type"]).partition("_")
    if kind in _NUMBERS and is_unread:
        number = _NUMBERS[kind]
        return SettingsError(f"{_name(option)} {complaint['input']!r} is not {number}", _wanted(option, number, see))
    if str(complaint["type"]).startswith(("greater_than", "less_than")):
        return SettingsError(f"{_name(option)} {complaint['input']} is out of range", _wanted(option, "a value", see))
    return None


def _name(option: Option) -> str:
    return option.longs[0] + (f" (or {option.env})" if option.env else "")


def _wanted(option: Option, number: str, see: str) -> str:
    return f"give {number}{f', {option.limits}' if option.limits else ''}; {see}"
