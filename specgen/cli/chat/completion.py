"""Completes commands and their arguments while a line is typed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import get_args

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from specgen.cli.chat.commands import COMMANDS
from specgen.cli.chat.settings import SETTING_NAMES
from specgen.render.views import ViewName
from specgen.storage.saved_chats import SessionFolder

Choices = Callable[[], Iterable[str]]
"""Returns the current choices for the argument of a command."""


def argument_choices(folder: SessionFolder) -> dict[str, Choices]:
    """Returns the choices for the argument of each command."""
    return {
        "/draft": lambda: ("auto", "lookup", "none"),
        "/k": lambda: ("auto",),
        "/load": lambda: [entry.name for entry in folder.entries()],
        "/retry": lambda: [f"{name}=" for name in SETTING_NAMES],
        "/set": lambda: SETTING_NAMES,
        "/stats": lambda: ("on", "off"),
        "/system": lambda: ("none",),
        "/view": lambda: get_args(ViewName),
    }


class CommandCompleter(Completer):
    """Completes commands at the start of a line, and their arguments.

    Args:
        choices: See `argument_choices`.
    """

    def __init__(self, choices: dict[str, Choices]) -> None:
        self._choices = choices
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        name, space, argument = text.partition(" ")
        if not space:
            for command in COMMANDS:
                if command.name.startswith(text):
                    yield Completion(command.name, -len(text), display_meta=command.text)
        elif name == "/read":
            yield from self._paths.get_completions(Document(argument), complete_event)
        else:
            for choice in self._choices.get(name, tuple)():
                if choice.startswith(argument):
                    yield Completion(choice, -len(argument))
