"""What a person types in, a text out: editing, history and completion with prompt_toolkit. Knows no commands' meaning.

Imported inside `specgen chat` only: prompt_toolkit takes 0.2 s.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app, get_app_or_none
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import Output, create_output
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.shortcuts import CompleteStyle
from prompt_toolkit.utils import is_dumb_terminal

from specgen.cli.chat.commands import COMMANDS, is_open_block
from specgen.core.errors import OutputError, SettingsError

MAX_ENTRIES = 1000
PROMPT, MORE = "> ", ". "

Choices = Callable[[], Iterable[str]]
"""Arguments of a command that can be completed, as they are now."""


class PrivateHistory(FileHistory):
    """A history file nobody else can read: the newest entries of this and earlier chats.

    Lines that start with a space are not kept, as in shells. A file that can't be written is no history, no error.

    Args:
        path: Made at the first line.
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
                file.write(f"\n# specgen\n{lines}".encode("utf-8", "replace"))

    def _shorten(self, path: Path) -> None:
        """Keep the newest entries once the file holds half as many again."""
        from specgen.storage.atomic_write import replace_file

        blocks = path.read_bytes().split(b"\n# specgen\n")
        if len(blocks) > MAX_ENTRIES * 3 // 2:
            kept = blocks[-MAX_ENTRIES:]
            with suppress(OutputError):
                replace_file(path, b"".join(b"\n# specgen\n" + block.rstrip(b"\n") + b"\n" for block in kept))


class CommandCompleter(Completer):
    """Completes slash commands at the start of a line, and their arguments.

    Args:
        choices: For commands whose arguments can be listed.
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


class LineEditor:
    """Reads what a person types.

    Args:
        history_path: History file; None keeps the history in memory.
        choices: Arguments that can be completed, by command.
        output: Another place to draw on than the terminal.
    """

    def __init__(self, history_path: Path | None, choices: dict[str, Choices], output: Output | None = None) -> None:
        history: History = InMemoryHistory() if history_path is None else PrivateHistory(history_path)
        if output is None and not is_dumb_terminal():  # there prompt_toolkit has a way of its own without escapes
            output = create_output(always_prefer_tty=True)
        if isinstance(output, Vt100_Output):
            # Asking the terminal where its cursor is only serves menus, and leaves its answer behind when we leave.
            output.enable_cpr = False
        self._session: PromptSession[str] = PromptSession(
            PROMPT,
            history=history,
            completer=CommandCompleter(choices),
            complete_style=CompleteStyle.READLINE_LIKE,
            complete_while_typing=False,
            enable_history_search=False,
            enable_open_in_editor=True,
            enable_suspend=True,
            key_bindings=_bindings(),
            multiline=True,
            output=output,
            prompt_continuation=MORE,
            reserve_space_for_menu=0,
        )

    def read(self, default: str = "") -> str:
        """Wait for one entry.

        Args:
            default: Text to begin with.

        Raises:
            KeyboardInterrupt: Ctrl-C on an empty line.
            EOFError: Ctrl-D on an empty line, or the terminal is gone.
        """
        try:
            text = self._session.prompt(default=default)
        except OSError as error:
            raise EOFError from error
        # Bytes that are no text arrive as lone surrogates, which no tokenizer takes.
        return text.encode("utf-8", "replace").decode()

    def interrupt(self) -> bool:
        """From a signal handler: let `read` return with "", unless it is returning already; False outside of its loop.

        An exception would be lost whenever the signal comes in one of the event loop's callbacks: it reports what is
        raised there and goes on.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return False
        loop.call_soon_threadsafe(self._end_reading)
        return True

    def _end_reading(self) -> None:
        # The innermost one is a question of its own ("display all 200 possibilities?"), or a dumb terminal's prompt.
        for app in (get_app_or_none(), self._session.app):
            if app is not None and app.future is not None and not app.future.done():
                app.exit(result="")


def _bindings() -> KeyBindings:
    keys = KeyBindings()
    in_block = Condition(lambda: is_open_block(_current_text()))

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        if in_block():
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


def _current_text() -> str:
    return get_app().current_buffer.text


def edit_text(text: str) -> str:
    """Let the person change a text in their editor; returns what they saved.

    Raises:
        SettingsError: There is no editor, or it failed.
    """
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory(prefix="specgen-") as folder:
        path = Path(folder) / "message.md"
        path.write_text(text, encoding="utf-8")
        # Ctrl-C in the editor is the editor's: a handler of ours that does nothing is reset in the child.
        previous = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            done = subprocess.run([*shlex.split(command), str(path)], stdin=sys.stdin, check=False)  # noqa: S603
            saved = path.read_text(encoding="utf-8", errors="replace")
        except (OSError, ValueError) as error:
            raise SettingsError(f"the editor {command} can't be started: {error}", "set EDITOR to another") from error
        finally:
            signal.signal(signal.SIGINT, previous)
    if done.returncode:
        raise SettingsError(f"the editor {command} ended with exit code {done.returncode}", "nothing was sent")
    return saved
