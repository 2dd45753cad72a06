"""The commands of a chat that touch files: reading a text, and saving and loading sessions."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from specgen.cli.prompt_input import decode, read_capped
from specgen.core.errors import PromptError, SettingsError
from specgen.render.sanitize import one_line
from specgen.render.text_width import cut_to_cells
from specgen.storage.saved_chats import SessionFile, SessionSetAside

if TYPE_CHECKING:
    from specgen.cli.chat.loop import Chat

MAX_LISTED = 20


def read(chat: Chat, argument: str) -> None:
    """`/read FILE`."""
    if not argument:
        raise SettingsError("/read needs a file", "as in: /read notes.txt")
    path = Path(argument.strip("\"'")).expanduser()
    if not path.is_file():
        raise PromptError(f"{path} is {'no file' if path.exists() else 'not there'}")
    try:
        with path.open("rb") as file:
            text = decode(read_capped(file, str(path)), str(path)).strip("\r\n")
    except OSError as error:
        raise PromptError(f"can't read {path}: {error.strerror or error}") from error
    chat.attached += f"{text}\n\n"
    chat.tell(f"read {len(text)} characters of {one_line(path.name)}; they go in front of your next message")


def save(chat: Chat, argument: str) -> None:
    """`/save [NAME]`."""
    if not argument and chat.saving.file is None:
        chat.saving.is_on = True
        chat.save()
        if chat.saving.file is None:
            raise SettingsError("there is nothing to save yet")
    name = argument or str(chat.saving.file.path if chat.saving.file else "")
    file = chat.saving.save_as(name, chat.transcript())
    chat.tell(f"saved as {one_line(file.name)}: {one_line(str(file.path))}")


def load(chat: Chat, argument: str) -> None:
    """`/load NAME`."""
    if not argument:
        raise SettingsError("/load needs a name", "/sessions lists them")
    path = chat.saving.folder.existing(argument)
    if chat.saving.file is not None and path == chat.saving.file.path:
        raise SettingsError(f"{argument} is the session of this chat")
    file = SessionFile(path)
    try:
        transcript = file.load()
    except SessionSetAside as aside:
        file.close()
        raise SettingsError(str(aside)) from aside
    except BaseException:
        file.close()
        raise
    chat.save()
    chat.saving.switch_to(file)
    chat.resume_from(transcript)
    chat.tell_folding()


def sessions(chat: Chat, argument: str) -> None:  # noqa: ARG001
    """`/sessions`."""
    entries = chat.saving.folder.entries()
    if not entries:
        chat.tell("there are no saved sessions")
    for entry in entries[:MAX_LISTED]:
        when = datetime.fromtimestamp(entry.saved).strftime("%Y-%m-%d %H:%M")
        ours = "  (this one)" if chat.saving.file is not None and chat.saving.file.name == entry.name else ""
        chat.tell(Text().append(f"{when}  ", "muted").append(one_line(entry.name)).append(ours, "muted"))
    if len(entries) > MAX_LISTED:
        chat.tell(f"and {len(entries) - MAX_LISTED} older ones in {chat.saving.folder.path}")


def one_line_preview(text: str, longest: int = 60, *, ascii_only: bool = False) -> str:
    """A text on one safe line, cut to so many cells."""
    return cut_to_cells(one_line(re.sub(r"\s+", " ", text), ascii_only=ascii_only), longest, "...")
