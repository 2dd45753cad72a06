"""Saves the session of a chat after every turn, and opens saved ones. The chat continues if saving fails."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Set
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from specgen.cli.options.models import AUTO
from specgen.core.draft_name import LOOKUP_SUFFIX, DraftName
from specgen.core.errors import OutputError, SettingsError
from specgen.core.results import ModelInfo
from specgen.core.settings import ModelSettings, Quantization
from specgen.render.formatting import format_model
from specgen.render.sanitize import one_line
from specgen.runtime.servers.conversation import ServedConversation
from specgen.storage.saved_chats import SessionFile, SessionFolder, SessionSetAside
from specgen.storage.transcript import SavedModel, Transcript

SERVED = "server"
"""The drafter of a saved chat whose replies a server generated."""

if TYPE_CHECKING:
    from specgen.cli.chat.settings import ChatSettings
    from specgen.runtime.chat_history import ChatHistory
    from specgen.runtime.conversation import Conversation
    from specgen.runtime.loaded_models import LoadedModels


class Autosave:
    """The session file of a running chat, saved after every turn if `is_on`. `warn` reports what can't be saved."""

    def __init__(self, folder: SessionFolder, *, is_on: bool, warn: Callable[[str], None]) -> None:
        self.folder = folder
        self.file: SessionFile | None = None
        """The session; None creates one at the next turn."""
        self.is_on = is_on
        self.failure: OutputError | None = None
        """Why the session on disk is older than the one in memory."""
        self._warn = warn

    def resume(self, name: str) -> Transcript | None:
        """Opens the saved session that the chat continues; returns None if it is damaged, and a new one begins."""
        try:
            file, transcript = open_session(self.folder.existing(name))
        except SessionSetAside as error:
            self._warn(f"{error}; starting a new session")
            return None
        if self.is_on:
            self.file = file
        else:
            file.close()
        return transcript

    def save(self, transcript: Transcript) -> None:
        """Saves the session if it has messages. Warns once if that fails."""
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
                self._warn(f"{error.message}; will try again after the next turn")
            self.failure = error

    def save_as(self, name: str, transcript: Transcript) -> SessionFile:
        """Saves the session under a name, and continues to save it there.

        Raises:
            SettingsError: The name is invalid, another session has it, or another chat writes to it.
            OutputError: The file can't be written.
        """
        path = self.folder.path_of(name)
        if self.file is not None and path == self.file.path:
            self.file.save(transcript)
            self.failure = None
            return self.file
        if path.exists():
            raise SettingsError(f"a session named {name} already exists", "choose another name, or /load it")
        if path.parent == self.folder.path:
            self.folder.make()
        file = SessionFile(path)
        try:
            file.save(transcript)
        except OutputError:
            file.close()
            raise
        self.switch_to(file)
        self.failure = None
        return file

    @property
    def resume_name(self) -> str | None:
        """The argument of `--resume`, quoted for a shell and a terminal; None if the session is not on disk."""
        if self.file is None or self.failure is not None:
            return None
        is_in_folder = self.file.path.parent == self.folder.path
        return shlex.quote(one_line(self.file.name if is_in_folder else os.path.abspath(self.file.path)))

    def switch_to(self, file: SessionFile | None) -> None:
        """Continues in another session; None creates a new one at the next turn."""
        self.close()
        self.file = file
        self.is_on = self.is_on or file is not None

    def close(self) -> None:
        """Releases the lock of the session. Can be called again."""
        if self.file is not None:
            self.file.close()


def open_session(path: Path) -> tuple[SessionFile, Transcript]:
    """Locks and reads a saved session.

    Raises:
        SessionSetAside: The file is damaged or too new, and has been renamed.
        SessionInUse: Another chat writes to it.
        OutputError: It can't be read or renamed.
    """
    file = SessionFile(path)
    try:
        return file, file.load()
    except BaseException:
        file.close()
        raise


def transcript_of(conversation: ChatHistory, settings: ChatSettings, created: str) -> Transcript:
    """Returns a conversation as it is saved."""
    if isinstance(conversation, ServedConversation):
        facts, host = conversation.server.facts, conversation.server.client.address.host
        target, drafter, draft = SavedModel(facts.model, ran_as=f"{facts.name} at {host}"), SERVED, None
    else:
        target, drafter, draft = _saved_pair(cast("Conversation", conversation).models)
    return Transcript(
        messages=conversation.messages,
        system=conversation.system,
        target=target,
        drafter=drafter,
        draft=draft,
        settings=settings.to_figures(),
        created=created,
    )


def _saved_pair(models: LoadedModels) -> tuple[SavedModel, str, SavedModel | None]:
    requested, used = models.pair.requested, models.pair.settings
    # The draft that `auto` chooses is not saved: its path is in the package, which may be elsewhere at the next start.
    draft = None if requested.drafter == "auto" else requested.draft
    return (
        _saved_model(requested.target, models.target_info),
        used.drafter,
        _saved_model(draft, models.draft_info) if draft and models.draft_info else None,
    )


def _saved_model(requested: ModelSettings, info: ModelInfo) -> SavedModel:
    return SavedModel(absolute_name(requested.name), requested.quant, info.revision, format_model(info))


def absolute_name(name: str) -> str:
    """Returns a model's name with a path made absolute: a session may be resumed from another folder."""
    path = os.path.expanduser(name)
    return os.path.abspath(path) if name and os.path.exists(path) else name


def resumed_models(
    given: Set[str], transcript: Transcript, target: ModelSettings, draft: DraftName, like: ModelSettings
) -> tuple[ModelSettings, DraftName, ModelSettings]:
    """Returns target, draft and how to load it: those of the saved session, unless `given` names their options."""
    if transcript.drafter == SERVED:
        return target, draft, like  # its model was one of a server
    if "target" not in given:
        target = _resumed(target, transcript.target, keeps_quant="quant" in given)
    if "draft" in given:
        return target, draft, like
    if transcript.draft is None:
        return target, DraftName(transcript.drafter if transcript.drafter in ("lookup", "none") else AUTO), like
    suffix = LOOKUP_SUFFIX if transcript.drafter == "model+lookup" else ""
    like = _resumed(like, transcript.draft, keeps_quant="draft_quant" in given)
    return target, DraftName(transcript.draft.name + suffix), like


def _resumed(settings: ModelSettings, saved: SavedModel, *, keeps_quant: bool) -> ModelSettings:
    known: Quantization = next((name for name in get_args(Quantization) if name == saved.quant), "auto")
    return replace(settings, name=saved.name, revision=saved.revision, quant=settings.quant if keeps_quant else known)
