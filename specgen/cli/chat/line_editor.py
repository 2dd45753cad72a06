"""Edits a line with prompt_toolkit, with history and completion. Imported by `specgen chat` only: it takes 0.2 s."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import get_args

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app, get_app_or_none
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.key_binding.key_processor import KeyPress
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import Output, create_output
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.shortcuts import CompleteStyle
from prompt_toolkit.utils import is_dumb_terminal

from specgen.cli.chat.commands import COMMANDS, is_command, is_open_block
from specgen.cli.chat.settings import SETTING_NAMES
from specgen.core.errors import OutputError
from specgen.render.views import ViewName
from specgen.storage.atomic_write import replace_file
from specgen.storage.saved_chats import SessionFolder

PROMPT, CONTINUATION = "> ", ". "
LONG_PASTE = 500
"""Characters of an entry from which a paste may be read in several pieces."""
MAX_HISTORY_ENTRIES = 1000
_HISTORY_SEPARATOR = b"\n# specgen\n"

Choices = Callable[[], Iterable[str]]
"""Returns the current choices for the argument of a command."""


class LineEditor:
    """Reads the entries that a user types.

    Args:
        history_path: The history file; None keeps the history in memory.
        choices: See `argument_choices`.
        output: Where to draw; default: the terminal.
    """

    def __init__(self, history_path: Path | None, choices: dict[str, Choices], output: Output | None = None) -> None:
        history: History = InMemoryHistory() if history_path is None else PrivateHistory(history_path)
        if output is None and not is_dumb_terminal():  # prompt_toolkit has its own output without escapes for those
            output = create_output(always_prefer_tty=True)
        if isinstance(output, Vt100_Output):
            # Only menus need the cursor position, and the terminal's answer would remain in its input at the end.
            output.enable_cpr = False
        self._session: PromptSession[str] = PromptSession(
            PROMPT,
            history=history,
            completer=CommandCompleter(choices),
            complete_style=CompleteStyle.READLINE_LIKE,
            complete_while_typing=False,
            enable_open_in_editor=True,
            enable_suspend=True,
            key_bindings=_bindings(),
            multiline=True,
            output=output,
            prompt_continuation=_continuation,
            reserve_space_for_menu=0,
        )

    def read(self) -> str:
        """Waits for one entry.

        Raises:
            KeyboardInterrupt: Ctrl-C on an empty line.
            EOFError: Ctrl-D on an empty line, or the terminal was closed.
        """
        try:
            text = self._session.prompt()
        except OSError as error:
            raise EOFError from error
        # Bytes that are not UTF-8 arrive as lone surrogates, which no tokenizer accepts.
        return text.encode("utf-8", "replace").decode()

    def interrupt(self) -> bool:
        """Makes `read` return "", unless it is already returning. Safe in a signal handler.

        An exception would be lost if the signal arrived in a callback of the event loop, which logs exceptions and
        continues.

        Returns:
            False outside of the event loop.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return False
        loop.call_soon_threadsafe(self._end_reading)
        return True

    def _end_reading(self) -> None:
        # The innermost app may be a question ("display all 200 possibilities?") or the prompt of a dumb terminal.
        for app in (get_app_or_none(), self._session.app):
            if app is not None and app.future is not None and not app.future.done():
                app.exit(result="")


def _bindings() -> KeyBindings:
    keys = KeyBindings()
    in_block = Condition(lambda: is_open_block(get_app().current_buffer.text))

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        if in_block() or (_is_pasted(event) and not is_command(event.current_buffer.text)):
            event.current_buffer.newline(copy_margin=False)
        else:
            event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @keys.add("c-c")
    @keys.add(Keys.SIGINT)
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt())

    return keys


def _is_pasted(event: KeyPressEvent) -> bool:
    """Returns whether text came together with this key, as in a paste without marks (screen, serial lines).

    Lines typed before the prompt appeared look the same, and also become one message. A control key, such as
    Ctrl-D, does not count as text.
    """
    if any(press.data == "\r" or (len(press.data) == 1 and press.data.isprintable()) for press in _later(event)):
        return True
    if len(event.current_buffer.text) < LONG_PASTE:
        return False
    try:  # prompt_toolkit reads 1024 bytes at once
        return bool(select.select([event.app.input.fileno()], [], [], 0)[0])
    except (OSError, ValueError, NotImplementedError):
        return False


def _later(event: KeyPressEvent) -> list[KeyPress]:
    """Returns the keys after this one that were read with it."""
    return list(event.key_processor.input_queue)


def _continuation(_width: int, _line: int, num_wraps: int) -> str:
    """Returns what is shown before a further row: a mark before a new line, blanks before a wrapped one."""
    return " " * len(CONTINUATION) if num_wraps else CONTINUATION


def argument_choices(folder: SessionFolder) -> dict[str, Choices]:
    """Returns the choices for the argument of each command."""
    return {
        "/draft": lambda: ("auto", "lookup", "mtp", "none"),
        "/k": lambda: ("auto",),
        "/load": lambda: [entry.name for entry in folder.entries()],
        "/retry": lambda: [f"{name}=" for name in SETTING_NAMES],
        "/set": lambda: SETTING_NAMES,
        "/stats": lambda: ("on", "off"),
        "/system": lambda: ("none",),
        "/view": lambda: get_args(ViewName),
    }


class CommandCompleter(Completer):
    """Completes commands at the start of a line, and their arguments; see `argument_choices`."""

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


class PrivateHistory(FileHistory):
    """A history file that only its owner can read, with the newest entries of this and earlier chats.

    Lines that start with a space are not stored, as in shells. A file that can't be written is silently ignored.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        with suppress(OSError):
            self._shorten(path)

    def append_string(self, string: str) -> None:
        if not string.startswith(" "):
            super().append_string(string)

    def load_history_strings(self) -> Iterable[str]:
        try:
            return list(super().load_history_strings())
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        lines = "".join(f"+{line}\n" for line in string.split("\n"))
        path = Path(os.fsdecode(self.filename))
        with suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(path, flags, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(_HISTORY_SEPARATOR + lines.encode("utf-8", "replace"))

    def _shorten(self, path: Path) -> None:
        """Keeps the newest `MAX_HISTORY_ENTRIES` entries once the file has half as many again."""
        blocks = path.read_bytes().split(_HISTORY_SEPARATOR)
        if len(blocks) > MAX_HISTORY_ENTRIES * 3 // 2:
            newest = blocks[-MAX_HISTORY_ENTRIES:]
            with suppress(OutputError):
                replace_file(path, b"".join(_HISTORY_SEPARATOR + block.rstrip(b"\n") + b"\n" for block in newest))
