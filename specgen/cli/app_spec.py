"""What the program takes, read from the app's own declarations: for help, completions and the manual page."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo, OptionInfo

GENERAL = "General"
"""Heading of the options that name none."""

_WORD = re.compile(r"[a-z][a-z0-9.]*")
_MODELS = ("MODEL", "TARGET")
_FILES = ("FILE", "FOLDER")
_EXAMPLES = "Examples:"


@dataclass(frozen=True, slots=True)
class Option:
    """An option, as people see it; one without names is what a command takes without a name.

    Args:
        names: As declared: `--target`, `-t`.
        off_names: What switches it off: `--no-stats`.
        value: What follows it, as in `MODEL|lookup|none`; empty for a switch.
        help: One or two sentences.
        heading: The group it is shown in.
        env: The environment variable that stands in for it.
        default: As typed; None where the help tells it or there is none.
        limits: The range of a number, as in `1 to 64`.
        is_repeatable: It may be given more than once.
        is_required: The command does not run without it.
    """

    names: tuple[str, ...]
    off_names: tuple[str, ...] = ()
    value: str = ""
    help: str = ""
    heading: str = GENERAL
    env: str | None = None
    default: str | None = None
    limits: str | None = None
    is_repeatable: bool = False
    is_required: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        """Values that can be typed as they are."""
        return tuple(part for part in self._parts if _WORD.fullmatch(part))

    @property
    def takes_model(self) -> bool:
        """Whether the value names a model."""
        return any(word in self._parts for word in _MODELS)

    @property
    def takes_session(self) -> bool:
        """Whether the value names a saved session."""
        return "NAME" in self._parts

    @property
    def takes_file(self) -> bool:
        """A model may be a file or folder, too."""
        return self.takes_model or any(word in self._parts for word in _FILES)

    @property
    def shorts(self) -> list[str]:
        """`-t`, without the long names."""
        return [name for name in self.names if not name.startswith("--")]

    @property
    def longs(self) -> list[str]:
        """Names with two dashes."""
        return [name for name in self.names if name.startswith("--")]

    @property
    def shortest(self) -> str:
        """The name to show where there is room for one."""
        return [*self.shorts, *self.longs][0]

    @property
    def every_name(self) -> tuple[str, ...]:
        """All names, those that turn it off included."""
        return (*self.names, *self.off_names)

    @property
    def notes(self) -> str:
        """Whether it must be given, range, variable and default in brackets, or nothing."""
        found = [
            *(["required"] if self.is_required else []),
            *([self.limits] if self.limits else []),
            *([f"env {self.env}"] if self.env else []),
            *([f"default {self.default}"] if self.default is not None else []),
        ]
        return f"[{'; '.join(found)}]" if found else ""

    @property
    def _parts(self) -> list[str]:
        return re.sub(r"\[.*?\]", "", self.value).split("|")


@dataclass(frozen=True, slots=True)
class Command:
    """A command, or with an empty name the program itself.

    Args:
        name: As typed.
        help: One sentence.
        argument: What it takes without a name; None if nothing.
        options: In the order of their declaration.
        epilog: Paragraphs; those behind `Examples:` that hold a command are examples.
    """

    name: str
    help: str
    argument: Option | None = None
    options: tuple[Option, ...] = ()
    epilog: str = ""

    @property
    def headings(self) -> list[str]:
        """Each once, in the order of the first option under it; the general ones last."""
        found = dict.fromkeys(option.heading for option in self.options)
        return sorted(found, key=lambda heading: heading == GENERAL)

    def under(self, heading: str) -> list[Option]:
        """The options of a group."""
        return [option for option in self.options if option.heading == heading]

    @property
    def usage(self) -> str:
        """What may and must be typed behind its name."""
        required = [f"{option.shortest} {option.value}" for option in self.options if option.is_required]
        return " ".join(["[OPTIONS]", *required, *([self.argument.value] if self.argument else [])])

    @property
    def paragraphs(self) -> list[str]:
        """What the epilog says, less the examples."""
        before, _, behind = self.epilog.partition(_EXAMPLES)
        return [*_parts(before), *(part for part in _parts(behind) if not _is_example(part))]

    @property
    def examples(self) -> list[str]:
        """Of any command: what one makes, another uses."""
        return [part for part in _parts(self.epilog.partition(_EXAMPLES)[2]) if _is_example(part)]


@dataclass(frozen=True, slots=True)
class Program:
    """The program with its commands."""

    root: Command
    commands: tuple[Command, ...] = field(default=())


HELP = Option(("--help", "-h"), help="Show this help.")


def describe(app: typer.Typer) -> Program:
    """Everything the program takes."""
    root = app.registered_callback
    assert root is not None
    assert root.callback is not None
    commands = [
        _command(info.name or "", info.callback, info.epilog or "")
        for info in app.registered_commands
        if info.callback is not None and not info.hidden
    ]
    return Program(_command("", root.callback, ""), tuple(commands))


def _command(name: str, function: Callable[..., Any], epilog: str) -> Command:
    hints = get_type_hints(function, include_extras=True)
    argument: Option | None = None
    options = []
    for parameter in inspect.signature(function).parameters.values():
        kind, *extras = get_args(hints[parameter.name]) or (None,)
        info = extras[0] if extras else None
        if isinstance(info, ArgumentInfo):
            argument = Option((), value=info.metavar or parameter.name.upper(), help=info.help or "")
        elif isinstance(info, OptionInfo) and not info.hidden:
            options.append(_option(info, kind, parameter.default))
    return Command(name, (inspect.getdoc(function) or "").partition("\n\n")[0], argument, (*options, HELP), epilog)


def _option(info: OptionInfo, kind: object, default: object) -> Option:
    names, off_names = [], []
    # Within Annotated, Typer takes the first name for a default until it builds its commands.
    first = [info.default] if isinstance(info.default, str) and info.default.startswith("-") else []
    for declared in [*first, *(info.param_decls or ())]:
        on, _, off = declared.partition("/")
        names.append(on)
        off_names += [off] if off else []
    kind = _without_none(kind)
    is_list = get_origin(kind) is list
    if is_list:
        kind = get_args(kind)[0]
    value = "" if kind is bool or info.count else info.metavar or _value(kind)
    env = info.envvar if isinstance(info.envvar, str) else None
    return Option(
        tuple(names),
        tuple(off_names),
        value,
        info.help or "",
        info.rich_help_panel if isinstance(info.rich_help_panel, str) else GENERAL,
        env,
        _default(info, default, names, off_names),
        _limits(info),
        is_list or info.count,
        default is inspect.Parameter.empty,
    )


def _parts(epilog: str) -> list[str]:
    return [part.strip() for part in epilog.split("\n\n") if part.strip()]


def _is_example(part: str) -> bool:
    return "specgen " in part


def _without_none(kind: object) -> object:
    if get_origin(kind) in (Union, UnionType):
        return next(one for one in get_args(kind) if one is not NoneType)
    return kind


def _value(kind: object) -> str:
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    return {int: "N", float: "X", Path: "FILE"}.get(kind, "TEXT")  # type: ignore[call-overload, no-any-return]


def _default(info: OptionInfo, default: object, names: list[str], off_names: list[str]) -> str | None:
    if not info.show_default or default in (None, "", inspect.Parameter.empty) or info.count:
        return None
    if isinstance(default, bool):
        return (names[0] if default else off_names[0]) if off_names else None
    return str(default)


def _limits(info: OptionInfo) -> str | None:
    if info.min is not None and info.max is not None:
        return f"{info.min} to {info.max}"
    return f"at least {info.min}" if info.min is not None else None
