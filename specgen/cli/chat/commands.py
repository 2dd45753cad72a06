"""A line typed into a chat in; what it asks for, out: a message, a command, or a word about a mistake. Does nothing."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

BLOCK = '"""'


@dataclass(frozen=True, slots=True)
class CommandHelp:
    """A command.

    Args:
        name: With its slash.
        argument: What may follow it, as shown in the help.
        text: What it does.
        aliases: Other names, with their slashes.
    """

    name: str
    argument: str
    text: str
    aliases: tuple[str, ...] = ()

    @property
    def usage(self) -> str:
        """Name and argument, as help shows them."""
        return f"{self.name} {self.argument}".rstrip()


COMMANDS = (
    CommandHelp("/help", "", "this list", ("/?",)),
    CommandHelp("/exit", "", "leave; so does Ctrl-D", ("/bye", "/quit")),
    CommandHelp("/clear", "", "forget what was said; the saved session stays"),
    CommandHelp("/undo", "", "take back your last message and its reply"),
    CommandHelp("/retry", "[NAME=VALUE ...]", "another reply, with other settings once"),
    CommandHelp("/edit", "", "change your last message in $EDITOR, send it again"),
    CommandHelp("/system", "[TEXT|none]", "show, set or remove the system message"),
    CommandHelp("/set", "[NAME VALUE]", "show the settings, or change one"),
    CommandHelp("/view", "NAME", "inline, live, text, steps or off"),
    CommandHelp("/draft", "NAME[+lookup]|none", "what drafts: a model, auto, lookup, or nothing"),
    CommandHelp("/k", "N|auto", "change the longest draft"),
    CommandHelp("/stats", "[on|off]", "figures of reply and session; the line per reply"),
    CommandHelp("/last", "", "the last reply as plain text"),
    CommandHelp("/read", "FILE", "put a text file in front of your next message"),
    CommandHelp("/save", "[NAME]", "save now; under a name, or in a file if it has a /"),
    CommandHelp("/load", "NAME", "go on with a saved session"),
    CommandHelp("/sessions", "", "saved sessions"),
    CommandHelp("/tokens", "", "how full the context window is"),
)
NAMES = {name: command for command in COMMANDS for name in (command.name, *command.aliases)}


@dataclass(frozen=True, slots=True)
class Say:
    """A message for the model."""

    text: str


@dataclass(frozen=True, slots=True)
class Command:
    """A command that exists, by its main name."""

    name: str
    argument: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """A command that does not exist, and the nearest one that does. It never goes to the model."""

    name: str
    nearest: str | None

    @property
    def hint(self) -> str:
        """What the person may have meant."""
        meant = f"did you mean {self.nearest}? " if self.nearest else ""
        return f"{meant}/help lists commands; // sends a literal slash"


@dataclass(frozen=True, slots=True)
class Nothing:
    """An empty line."""


Line = Say | Command | Unknown | Nothing


def parse_line(text: str) -> Line:
    """What a line, or several, asks for.

    A first character `/` makes it a command, `//` a message that begins with one slash; a block between triple quotes
    is always a message, line by line as it stands.
    """
    block = unquoted_block(text)
    if block is not None:
        return Say(block) if block.strip() else Nothing()
    stripped = text.strip()
    if not stripped:
        return Nothing()
    if stripped.startswith("//"):
        return Say(stripped[1:])
    if not stripped.startswith("/"):
        return Say(stripped)
    # Commands are in lower case, and people on phones type /Undo.
    name, _, argument = stripped.partition(" ")
    if "\n" in name:
        name, _, argument = stripped.partition("\n")
    known = NAMES.get(name.lower())
    if known is None:
        return Unknown(name, nearest(name.lower(), list(NAMES)))
    return Command(known.name, argument.strip())


def unquoted_block(text: str) -> str | None:
    """The text between triple quotes; None if it is no such block."""
    stripped = text.strip()
    if len(stripped) < 2 * len(BLOCK) or not (stripped.startswith(BLOCK) and stripped.endswith(BLOCK)):
        return None
    return stripped[len(BLOCK) : -len(BLOCK)].strip("\n")


def is_open_block(text: str) -> bool:
    """Whether a block between triple quotes has begun and not ended, so that Enter starts a new line."""
    return text.lstrip().startswith(BLOCK) and unquoted_block(text) is None


def nearest(name: str, names: list[str]) -> str | None:
    """The known name most like this one, if any is."""
    if len(name) < 2:
        return None
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return found[0] if found else next((known for known in sorted(names) if known.startswith(name)), None)
