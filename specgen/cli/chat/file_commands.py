"""The commands of a chat that use files: read a text, edit a message in $EDITOR, save and load sessions."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from specgen.cli.chat.session import open_session
from specgen.cli.prompt_input import decode_text, read_capped
from specgen.core.errors import PromptError, SettingsError
from specgen.core.settings import ReplySettings
from specgen.render.sanitize import one_line
from specgen.storage.saved_chats import SessionSetAside

if TYPE_CHECKING:
    from specgen.cli.chat.state import ChatState

MAX_LISTED = 20


def read(state: ChatState, argument: str) -> None:
    """Runs `/read FILE`: prepends a text file to the next message."""
    if not argument:
        raise SettingsError("/read needs a file", "as in: /read notes.txt")
    path = Path(os.path.expanduser(argument.strip("\"'")))  # Path.expanduser() raises for an unknown home
    if not path.is_file():
        raise PromptError(f"{path} is not a file" if path.exists() else f"{path} does not exist")
    try:
        with path.open("rb") as file:
            text = decode_text(read_capped(file, str(path)), str(path)).strip("\r\n")
    except OSError as error:
        raise PromptError(f"can't read {path}: {error.strerror or error}") from error
    state.attached_text += f"{text}\n\n"
    state.print(f"read {len(text)} characters of {one_line(path.name)}, to be prepended to your next message")


def edit(state: ChatState, argument: str) -> ReplySettings | None:  # noqa: ARG001
    """Runs `/edit`: edits the last message in $EDITOR, and sends it again."""
    old = state.conversation.last_user_text
    with state.terminal.mode.released():
        new = edit_text(old or "").strip()
    if not new or new == old:
        state.print("unchanged; nothing was sent" if new else "empty; nothing was sent")
        return None
    state.conversation.take_back()
    state.conversation.say(new)
    state.print(f"sending: {state.preview(new)}")
    return state.reply_settings


def edit_text(text: str) -> str:
    """Opens $VISUAL, $EDITOR or vi on a text; returns the text as the user saved it.

    Raises:
        SettingsError: The editor can't be started, or it failed.
    """
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory(prefix="specgen-") as folder:
        path = Path(folder) / "message.md"
        path.write_text(text, encoding="utf-8")
        # Ctrl-C belongs to the editor. A handler that does nothing, unlike SIG_IGN, is reset in the child process.
        previous = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            done = subprocess.run([*shlex.split(command), str(path)], stdin=sys.stdin, check=False)  # noqa: S603
            edited = path.read_text(encoding="utf-8", errors="replace")
        except (OSError, ValueError) as error:
            raise SettingsError(f"can't start the editor {command}: {error}", "set EDITOR to another one") from error
        finally:
            signal.signal(signal.SIGINT, previous)
    if done.returncode:
        raise SettingsError(f"the editor {command} exited with code {done.returncode}", "nothing was sent")
    return edited


def save(state: ChatState, argument: str) -> None:
    """Runs `/save [NAME]`: saves the session, from now on under this name."""
    autosave = state.autosave
    if not argument and autosave.file is None:
        autosave.is_on = True
        state.save()
        if autosave.file is None:
            raise SettingsError("there is nothing to save yet")
    file = autosave.save_as(argument or str(autosave.file and autosave.file.path), state.transcript())
    state.print(f"saved as {one_line(file.name)}: {one_line(str(file.path))}")


def load(state: ChatState, argument: str) -> None:
    """Runs `/load NAME`: continues a saved session."""
    if not argument:
        raise SettingsError("/load needs a name", "/sessions lists the saved sessions")
    path = state.autosave.folder.existing(argument)
    if state.autosave.file is not None and path == state.autosave.file.path:
        raise SettingsError(f"{argument} is already the session of this chat")
    try:
        file, transcript = open_session(path)
    except SessionSetAside as error:
        raise SettingsError(str(error)) from error
    state.save()
    state.autosave.switch_to(file)
    state.resume_from(transcript)
    state.warn_of_system_role()


def sessions(state: ChatState, argument: str) -> None:  # noqa: ARG001
    """Runs `/sessions`: lists the saved sessions, newest first."""
    entries = state.autosave.folder.entries()
    if not entries:
        state.print("there are no saved sessions")
    current = None if state.autosave.file is None else state.autosave.file.name
    for entry in entries[:MAX_LISTED]:
        when = datetime.fromtimestamp(entry.saved).strftime("%Y-%m-%d %H:%M")
        mark = "  (this one)" if entry.name == current else ""
        state.print(Text().append(f"{when}  ", "muted").append(one_line(entry.name)).append(mark, "muted"))
    if len(entries) > MAX_LISTED:
        state.print(f"and {len(entries) - MAX_LISTED} older ones in {state.autosave.folder.path}")
