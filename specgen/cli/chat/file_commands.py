"""The commands of a chat that use files: read a text, save and load sessions."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from rich.text import Text

from specgen.cli.chat.state import ChatState
from specgen.cli.prompt_input import decode, read_capped
from specgen.core.errors import PromptError, SettingsError
from specgen.render.sanitize import one_line
from specgen.storage.saved_chats import SessionFile, SessionSetAside

MAX_LISTED = 20


def read(state: ChatState, argument: str) -> None:
    """`/read FILE`: prepends a text file to the next message."""
    if not argument:
        raise SettingsError("/read needs a file", "as in: /read notes.txt")
    path = Path(argument.strip("\"'")).expanduser()
    if not path.is_file():
        raise PromptError(f"{path} is not a file" if path.exists() else f"{path} does not exist")
    try:
        with path.open("rb") as file:
            text = decode(read_capped(file, str(path)), str(path)).strip("\r\n")
    except OSError as error:
        raise PromptError(f"can't read {path}: {error.strerror or error}") from error
    state.attached_text += f"{text}\n\n"
    state.print(f"read {len(text)} characters of {one_line(path.name)}, to be prepended to your next message")


def save(state: ChatState, argument: str) -> None:
    """`/save [NAME]`: saves the session, from now on under this name."""
    if not argument and state.autosave.file is None:
        state.autosave.is_on = True
        state.save()
        if state.autosave.file is None:
            raise SettingsError("there is nothing to save yet")
    name = argument or str(state.autosave.file.path if state.autosave.file else "")
    file = state.autosave.save_as(name, state.transcript())
    state.print(f"saved as {one_line(file.name)}: {one_line(str(file.path))}")


def load(state: ChatState, argument: str) -> None:
    """`/load NAME`: continues a saved session."""
    if not argument:
        raise SettingsError("/load needs a name", "/sessions lists the saved sessions")
    path = state.autosave.folder.existing(argument)
    if state.autosave.file is not None and path == state.autosave.file.path:
        raise SettingsError(f"{argument} is already the session of this chat")
    file = SessionFile(path)
    try:
        transcript = file.load()
    except SessionSetAside as error:
        file.close()
        raise SettingsError(str(error)) from error
    except BaseException:
        file.close()
        raise
    state.save()
    state.autosave.switch_to(file)
    state.resume_from(transcript)
    state.warn_of_system_role()


def sessions(state: ChatState, argument: str) -> None:  # noqa: ARG001
    """`/sessions`: lists the saved sessions, newest first."""
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
