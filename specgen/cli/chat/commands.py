"""Lists the commands of a chat, and parses what is typed as a message or a command. Runs nothing."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from specgen.core.errors import SettingsError

BLOCK = '"""'


@dataclass(frozen=True, slots=True)
class CommandHelp:
    """The help entry of a command. Its name and its aliases include the slash."""

    name: str
    argument: str
    text: str
    aliases: tuple[str, ...] = ()

    @property
    def usage(self) -> str:
        """Name and arguments."""
        return f"{self.name} {self.argument}".rstrip()


COMMANDS = (
    CommandHelp("/help", "", "show this list", ("/?",)),
    CommandHelp("/exit", "", "leave the chat; Ctrl-D leaves too", ("/bye", "/quit")),
    CommandHelp("/clear", "", "start a new conversation; keep the saved session"),
    CommandHelp("/undo", "", "remove your last message and its reply"),
    CommandHelp("/retry", "[NAME=VALUE ...]", "generate another reply, with other settings if given"),
    CommandHelp("/edit", "", "edit your last message in $EDITOR and send it again"),
    CommandHelp("/system", "[TEXT|none]", "show, set or remove the system message"),
    CommandHelp("/set", "[NAME VALUE]", "show the settings, or change one"),
    CommandHelp("/view", "NAME", "inline, live, text, steps or off"),
    CommandHelp("/draft", "NAME[+lookup]|none", "set the drafter: a model, auto, lookup, mtp or none"),
    CommandHelp("/k", "N|auto", "set the maximum draft length"),
    CommandHelp("/stats", "[on|off]", "show statistics, or switch the line per reply"),
    CommandHelp("/last", "", "show the last reply as plain text"),
    CommandHelp("/read", "FILE", "prepend a text file to your next message"),
    CommandHelp("/save", "[NAME]", "save now, under a name or as a file if it has a /"),
    CommandHelp("/load", "NAME", "continue a saved session"),
    CommandHelp("/sessions", "", "list the saved sessions"),
    CommandHelp("/tokens", "", "show how full the context window is"),
)
NAMES = {name: command for command in COMMANDS for name in (command.name, *command.aliases)}


@dataclass(frozen=True, slots=True)
class ChatCommand:
    """A command to run, by its main name."""

    name: str
    argument: str


def parse_line(text: str) -> ChatCommand | str:
    """Parses one entry, of one or several lines: a command, or a message for the model, which may be empty.

    An entry that starts with `/` is a command; one that starts with `//` is a message that begins with one slash. A
    block between triple quotes is always a message, and is kept line by line.

    Raises:
        SettingsError: The command does not exist.
    """
    block = unquoted_block(text)
    if block is not None:
        return block if block.strip() else ""
    stripped = text.strip()
    if stripped.startswith("//"):
        return stripped[1:]
    if not stripped.startswith("/"):
        return stripped
    # Commands are in lower case, but the keyboard of a phone types /Undo.
    name, _, argument = stripped.partition(" ")
    if "\n" in name:
        name, _, argument = stripped.partition("\n")
    command = NAMES.get(name.lower())
    if command is None:
        suggestion = closest_name(name.lower(), list(NAMES))
        meant = f"did you mean {suggestion}? " if suggestion else ""
        raise SettingsError(f"unknown command {name}", f"{meant}/help lists commands; // sends a literal slash")
    return ChatCommand(command.name, argument.strip())


def unquoted_block(text: str) -> str | None:
    """Returns the text between triple quotes; None if the text is not a complete block."""
    stripped = text.strip()
    if len(stripped) < 2 * len(BLOCK) or not (stripped.startswith(BLOCK) and stripped.endswith(BLOCK)):
        return None
    return stripped[len(BLOCK) : -len(BLOCK)].strip("\n")


def is_open_block(text: str) -> bool:
    """Returns whether a block between triple quotes has begun and not ended, so that Enter starts a new line."""
    return text.lstrip().startswith(BLOCK) and unquoted_block(text) is None


def is_command(text: str) -> bool:
    """Returns whether an entry is a command and no message."""
    stripped = text.lstrip()
    return stripped.startswith("/") and not stripped.startswith("//")


def closest_name(name: str, names: list[str]) -> str | None:
    """Returns the most similar of the known names; None if there is no similar one."""
    if len(name) < 2:
        return None
    matches = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return matches[0] if matches else next((known for known in sorted(names) if known.startswith(name)), None)
