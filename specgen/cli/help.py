"""Prints `--help`: plain text that fits any width, without rich, which takes longer to import than the page to make."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from contextlib import suppress
from typing import Any

from typer.core import TyperCommand, TyperGroup

from specgen.cli.app_spec import Command, Option, Program
from specgen.cli.program import program

MAX_CELLS = 100
NAME_CELLS = 28
NARROW_CELLS = 72
"""On a narrower terminal, the help texts get lines of their own instead of a second column."""

_PARTS = re.compile(r' ?\| (?!specgen ).+|(?:"[^"]*"|[^"])+?(?= [-|>"]|$)')
"""Parts of an example that stay on one line: a command of another program, or an option with its value."""


def format_command(command: Command, width: int, *, bold: bool = False) -> str:
    """Returns the help of a command, at most `width` cells wide."""
    width = min(width, MAX_CELLS)
    lines = [f"{_heading('Usage', bold)} specgen {command.name} {command.usage}", "", *_fill(command.help, width)]
    if command.argument:
        lines += ["", _heading("Argument", bold), *_entry(command.argument.value, command.argument.help, width)]
    for heading, options in command.options_by_heading.items():
        lines += ["", _heading(heading, bold)]
        for option in options:
            lines += _entry(_names(option), f"{option.help} {option.notes}".strip(), width)
    for paragraph in command.paragraphs:
        lines += ["", *_fill(paragraph, width)]
    if command.examples:
        examples = [line for example in command.examples for line in _example(example, width)]
        lines += ["", _heading("Examples", bold), *examples]
    return "\n".join(lines) + "\n"


def format_program(program: Program, width: int, *, bold: bool = False) -> str:
    """Returns the help of the program: its commands, and its own options."""
    width = min(width, MAX_CELLS)
    lines = [_heading("Usage", bold) + " specgen [OPTIONS] COMMAND ...", "", *_fill(program.root.help, width)]
    lines += ["", _heading("Commands", bold)]
    for command in program.commands:
        lines += _entry(command.name, command.help, width, name_cells=12)
    lines += ["", _heading("Options", bold)]
    for option in program.root.options:
        lines += _entry(_names(option), option.help, width)
    lines += ["", *_fill("specgen COMMAND --help shows the options of a command.", width)]
    return "\n".join(lines) + "\n"


def _names(option: Option) -> str:
    return f"{', '.join(option.all_names)} {option.value}".rstrip()


def _heading(text: str, bold: bool) -> str:
    return f"\x1b[1m{text}:\x1b[0m" if bold else f"{text}:"


def _fill(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        max(width, 20),
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _example(example: str, width: int) -> list[str]:
    r"""Breaks a long example so that it can still be copied: a shell joins a line that ends in `\` with the next.

    Lines break before an option, a quoted text, a pipe or a redirection, so that a value follows its option.
    """
    lines = [""]
    for part in map(str.lstrip, _PARTS.findall(example)):
        room = width - len(" \\") - (2 if len(lines) == 1 else 6)
        if lines[-1] and len(lines[-1]) + 1 + len(part) > room:
            lines.append(part)
        else:
            lines[-1] = f"{lines[-1]} {part}".lstrip()
    return [
        ("  " if number == 0 else " " * 6) + line + (" \\" if number < len(lines) - 1 else "")
        for number, line in enumerate(lines)
    ]


def _entry(name: str, text: str, width: int, name_cells: int = NAME_CELLS) -> list[str]:
    if width < NARROW_CELLS and name_cells == NAME_CELLS:
        return [f"  {name}", *_fill(text, width, " " * 6)]
    lines = _fill(text, width, " " * name_cells)
    if len(name) + 4 > name_cells or not lines:
        return [f"  {name}", *lines]
    return [f"  {name:<{name_cells - 2}}{lines[0].lstrip()}", *lines[1:]]


def _terminal_width() -> int:
    """Returns the width of stdout's terminal, or if a pager reads stdout, of stderr's."""
    with suppress(OSError, ValueError):
        return shutil.get_terminal_size((os.get_terminal_size(2).columns or 80, 24)).columns
    return shutil.get_terminal_size().columns


def page(name: str | None) -> str:
    """Returns the help of a command, or without a name of the program, for this terminal."""
    width, term = _terminal_width(), os.environ.get("TERM", "dumb")
    bold = sys.stdout is not None and sys.stdout.isatty() and term not in ("dumb", "unknown")
    for command in program().commands:
        if command.name == name:
            return format_command(command, width, bold=bold)
    return format_program(program(), width, bold=bold)


class HelpGroup(TyperGroup):
    """The program for Typer, with our help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002  the names are Typer's
        """Writes the help."""
        formatter.write(page(None))


class HelpCommand(TyperCommand):
    """A command for Typer, with our help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002  the names are Typer's
        """Writes the help."""
        formatter.write(page(self.name))
