"""Describes the program: its commands and options, as help, completions and the manual page show them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

GENERAL = "General"
"""Heading of the options that name no other."""

_WORD = re.compile(r"[a-z][a-z0-9.-]*")
_EXAMPLES = "Examples:"


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a command, or its argument.

    A field of an options class declares one with `Annotated[type, Option(...)]`. `specgen.cli.options.fields` then
    fills in `value` and what follows it here, from the field's name, type and default.

    Args:
        names: As in `-t` and `--target`, short ones first. Without names it is an argument.
        help: One or two sentences.
        off_names: Names that switch it off, as in `--no-stats`.
        heading: The group it is listed in; if empty, that of its class of options.
        env: The environment variable it can come from.
        minimum: Smallest number allowed; `maximum` is the largest.
        counts: It takes no value; how often it is given counts.
        value: What follows a name, as in `MODEL|lookup|none`; empty for a switch.
        field: Name of the field.
        kind: Type of one value: bool of a switch, a Literal, or a type that is made from a text, as int or Path.
        default: The default as a user types it; None if help shows no default.
        is_repeatable: It may be given more than once.
        is_required: The command does not run without it.
    """

    names: tuple[str, ...] = ()
    help: str = ""
    off_names: tuple[str, ...] = ()
    heading: str = ""
    env: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    counts: bool = False
    value: str = ""
    field: str = ""
    kind: Any = None
    default: str | None = None
    is_repeatable: bool = False
    is_required: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        """Values that can be typed as they are."""
        return tuple(part for part in self._parts if _WORD.fullmatch(part))

    @property
    def takes_model(self) -> bool:
        """Whether the value names a model."""
        return not {"MODEL", "TARGET"}.isdisjoint(self._parts)

    @property
    def lists(self) -> tuple[str, ...]:
        """The lists of `specgen --list` that its values are in."""
        return (*(("models",) if self.takes_model else ()), *(("sessions",) if "NAME" in self._parts else ()))

    @property
    def takes_file(self) -> bool:
        """Whether the value may be a file or folder; a model may."""
        return self.takes_model or not {"FILE", "FOLDER"}.isdisjoint(self._parts)

    @property
    def short_names(self) -> list[str]:
        """Names with one dash."""
        return [name for name in self.names if not name.startswith("--")]

    @property
    def long_names(self) -> list[str]:
        """Names with two dashes."""
        return [name for name in self.names if name.startswith("--")]

    @property
    def shortest_name(self) -> str:
        """The name to show where there is room for one."""
        return [*self.short_names, *self.long_names][0]

    @property
    def all_names(self) -> tuple[str, ...]:
        """All names, including those that switch it off."""
        return (*self.names, *self.off_names)

    @property
    def limits(self) -> str | None:
        """The range of its number, as in `1 to 64`."""
        if self.minimum is not None and self.maximum is not None:
            return f"{self.minimum:g} to {self.maximum:g}"
        return None if self.minimum is None else f"at least {self.minimum:g}"

    @property
    def notes(self) -> str:
        """Range, variable and default in brackets, and whether it is required; or nothing."""
        notes = (
            "required" if self.is_required else None,
            self.limits,
            f"env {self.env}" if self.env else None,
            None if self.default is None else f"default {self.default}",
        )
        return f"[{'; '.join(filter(None, notes))}]" if any(notes) else ""

    @property
    def _parts(self) -> list[str]:
        return re.sub(r"\[.*?\]", "", self.value).split("|")


HELP = Option(("-h", "--help"), "Show this help.", heading=GENERAL)


@dataclass(frozen=True, slots=True)
class Command:
    """A command, or the program itself if the name is empty.

    Args:
        name: As typed.
        help: One sentence.
        argument: What it takes without a name; None if nothing.
        options: In the order of their declaration.
        epilog: Paragraphs. Those after `Examples:` that contain a command are examples.
    """

    name: str
    help: str
    argument: Option | None = None
    options: tuple[Option, ...] = ()
    epilog: str = ""

    @property
    def options_by_heading(self) -> dict[str, list[Option]]:
        """The options in groups, in the order of their first options; the general group is the last one."""
        groups: dict[str, list[Option]] = {}
        for option in sorted(self.options, key=lambda option: option.heading == GENERAL):
            groups.setdefault(option.heading, []).append(option)
        return groups

    @property
    def usage(self) -> str:
        """What may and must be typed after the name."""
        required = [f"{option.shortest_name} {option.value}" for option in self.options if option.is_required]
        return " ".join(["[OPTIONS]", *required, *([self.argument.value] if self.argument else [])])

    @property
    def paragraphs(self) -> list[str]:
        """The epilog without the examples."""
        before, _, after = self.epilog.partition(_EXAMPLES)
        return [*_split(before), *(part for part in _split(after) if "specgen " not in part)]

    @property
    def examples(self) -> list[str]:
        """Command lines; some run another command on what this one made."""
        return [part for part in _split(self.epilog.partition(_EXAMPLES)[2]) if "specgen " in part]


@dataclass(frozen=True, slots=True)
class Program:
    """The program with its commands."""

    root: Command
    commands: tuple[Command, ...] = ()


def _split(epilog: str) -> list[str]:
    return [part.strip() for part in epilog.split("\n\n") if part.strip()]
