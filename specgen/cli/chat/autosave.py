"""Keeps a chat's session on disk: transcripts in, a file after every turn out. A chat goes on where saving fails."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from specgen.core.errors import OutputError, SettingsError
from specgen.core.results import ModelInfo
from specgen.core.settings import ModelSettings
from specgen.render.formatting import format_model
from specgen.render.sanitize import one_line
from specgen.storage.saved_chats import SessionFile, SessionFolder
from specgen.storage.transcript import SavedModel, Transcript

if TYPE_CHECKING:
    from specgen.cli.chat.settings import ChatSettings
    from specgen.runtime.conversation import Conversation


class Autosave:
    """The session file of a running chat.

    Args:
        folder: Where sessions live.
        file: The session that is continued; None: a new one, made at the first turn.
        is_on: Save after every turn.
        warn: Told about what can't be saved.
    """

    def __init__(
        self, folder: SessionFolder, file: SessionFile | None, *, is_on: bool, warn: Callable[[str], None]
    ) -> None:
        self.folder = folder
        self.file = file
        self.is_on = is_on
        self.failure: OutputError | None = None
        """Why the session on disk is not the one in memory."""
        self._warn = warn

    def save(self, transcript: Transcript) -> None:
        """Save if there is something to save. Says once why it can't."""
        if not self.is_on or not (transcript.messages or self.file):
            return
        if self.file is None:
            try:
                self.file = self.folder.fresh(datetime.now())
            except OutputError as error:
                self.is_on = False
                self._warn(f"this session is not saved: {error.message}")
                return
        try:
            self.file.save(transcript)
            self.failure = None
        except OutputError as error:
            if self.failure is None:
                self._warn(f"{error.message}; the next turn tries again")
            self.failure = error

    def save_as(self, name: str, transcript: Transcript) -> SessionFile:
        """Save under a name, and from now on there.

        Raises:
            SettingsError: No such name can be, another session has it, or another chat writes it.
            OutputError: It can't be written.
        """
        path = self.folder.path_of(name)
        if self.file is None or path != self.file.path:
            if path.exists():
                raise SettingsError(f"there is a session {name} already", "choose another name, or /load it")
            if path.parent == self.folder.path:
                self.folder.make()
            new = SessionFile(path)
            try:
                new.save(transcript)
            except OutputError:
                new.close()
                raise
            self.switch_to(new)
        elif self.file is not None:
            self.file.save(transcript)
        assert self.file is not None
        self.failure = None
        return self.file

    @property
    def name(self) -> str | None:
        """What `--resume` takes, safe for a shell and a terminal; None if nothing is on disk."""
        if self.file is None or self.failure is not None:
            return None
        is_ours = self.file.path.parent == self.folder.path
        return shlex.quote(one_line(self.file.name if is_ours else os.path.abspath(self.file.path)))

    def switch_to(self, file: SessionFile | None) -> None:
        """Go on in another session; None: a new one at the next turn."""
        self.close()
        self.file = file
        self.is_on = self.is_on or file is not None

    def close(self) -> None:
        """Let go of the session's lock."""
        if self.file is not None:
            self.file.close()


def transcript_of(conversation: Conversation, settings: ChatSettings, created: str) -> Transcript:
    """A conversation as it is saved."""
    models = conversation.models
    asked, used = models.pair.requested, models.pair.settings
    # A draft that `auto` chose is not named: it lies in the package, which may be elsewhere when the chat goes on.
    named = None if asked.drafter == "auto" else asked.draft
    return Transcript(
        messages=conversation.messages,
        system=conversation.system,
        target=_saved_model(asked.target, models.target_info),
        drafter=used.drafter,
        draft=_saved_model(named, models.draft_info) if named and models.draft_info else None,
        settings=settings.to_figures(),
        created=created,
    )


def _saved_model(asked: ModelSettings, info: ModelInfo) -> SavedModel:
    return SavedModel(whole_name(asked.name), asked.quant, info.revision, format_model(info))


def whole_name(name: str) -> str:
    """A model's name, a path made absolute: a session may be resumed from another folder."""
    path = os.path.expanduser(name)
    return os.path.abspath(path) if name and os.path.exists(path) else name
