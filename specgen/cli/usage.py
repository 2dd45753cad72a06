"""Handles command lines that can't be parsed."""

from __future__ import annotations

from itertools import pairwise

from specgen.core.errors import SettingsError

_EXTRA = "Got unexpected extra argument(s)"


def usage_error(error: Exception) -> SettingsError | None:
    """Returns the error to report, or None if Typer's has no text.

    Args:
        error: Typer's, with a `format_message`; these errors have no public base class.
    """
    context = getattr(error, "ctx", None)
    see = f"see {getattr(context, 'command_path', 'specgen')} --help"
    text = str(error.format_message())  # type: ignore[attr-defined]
    if not text:
        return None
    if text.startswith(_EXTRA) and getattr(context, "info_name", "") == "generate":
        return SettingsError(f"more than one prompt{text[len(_EXTRA) :]}", f"put the prompt into quotes; {see}")
    return SettingsError(text, see)


def wants_json(arguments: list[str]) -> bool:
    """Returns whether JSON is requested. Searches the words, because parsing them may have failed."""
    words = arguments[: arguments.index("--")] if "--" in arguments else arguments
    formats = [word.removeprefix("--format=") for word in words if word.startswith("--format=")]
    formats += [value for name, value in pairwise(words) if name == "--format"]
    return "--json" in words or "json" in formats or "ndjson" in formats
