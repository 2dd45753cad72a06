"""Opens a saved session, and merges its models and settings with the options of this chat."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace
from typing import get_args

from specgen.cli.chat.settings import ChatSettings
from specgen.cli.options.models import AUTO
from specgen.cli.streams import Messages
from specgen.core.settings import ModelSettings, Quantization
from specgen.runtime.pair import LOOKUP_SUFFIX
from specgen.storage.saved_chats import SessionFile, SessionFolder, SessionSetAside
from specgen.storage.transcript import Transcript


@dataclass(frozen=True, slots=True)
class ResumedSession:
    """The saved session that a chat continues.

    Args:
        file: Locked by this process; None if the chat does not save.
        transcript: Its content; None for a new session.
    """

    file: SessionFile | None = None
    transcript: Transcript | None = None


def resume_session(folder: SessionFolder, name: str, messages: Messages, *, keeps_file: bool) -> ResumedSession:
    """Opens a saved session. A damaged one is set aside, and a new one begins."""
    file = SessionFile(folder.existing(name))
    try:
        transcript = file.load()
    except SessionSetAside as error:
        file.close()
        messages.warning(f"{error}; starting a new session")
        return ResumedSession()
    except BaseException:
        file.close()
        raise
    if not keeps_file:
        file.close()
        return ResumedSession(None, transcript)
    return ResumedSession(file, transcript)


def resumed_models(
    given: Set[str], transcript: Transcript | None, target: ModelSettings, draft: ModelSettings
) -> tuple[ModelSettings, ModelSettings]:
    """Returns target and draft: of the command line if `given` names their options, else of the saved session."""
    if transcript is None:
        return target, draft
    if "target" not in given:
        saved = transcript.target
        target = replace(target, name=saved.name, revision=saved.revision)
        if "quant" not in given:
            target = replace(target, quant=_quantization(saved.quant))
    if "draft" not in given:
        if transcript.draft is None:
            name = transcript.drafter if transcript.drafter in ("lookup", "none") else AUTO
            return target, replace(draft, name=name)
        saved = transcript.draft
        name = saved.name + (LOOKUP_SUFFIX if transcript.drafter == "model+lookup" else "")
        draft = replace(draft, name=name, revision=saved.revision)
        if "draft_quant" not in given:
            draft = replace(draft, quant=_quantization(saved.quant))
    return target, draft


def resumed_settings(given: Set[str], transcript: Transcript | None, settings: ChatSettings) -> ChatSettings:
    """Returns the settings of the command line, completed by those of the saved session."""
    if transcript is None:
        return settings
    return settings.with_saved(transcript.settings, keep_draft_tokens="draft_tokens" in given)


def _quantization(name: str) -> Quantization:
    """Returns the weight format of that name; `auto` if it is unknown."""
    return next((known for known in get_args(Quantization) if known == name), "auto")
