"""What was said in a chat, as frozen values, and the same as JSON: the versioned form of a saved session.

Standard library only. A document holds text and settings, never token ids: those belong to one tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast

SCHEMA_VERSION = 1

Role = Literal["user", "assistant"]
Figure = float | int | str | None
T = TypeVar("T")


class TranscriptError(Exception):
    """A document that is no saved session, or one of a later version. Its text says which, in one line."""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message.

    Args:
        role: Who said it.
        content: What the other side gets to read in later turns.
        thinking: A reasoning block in front of it, kept for people and never fed back.
        interrupted: It was cut off: by Ctrl-C, the length limit or an error.
        stats: Figures of the reply.
    """

    role: Role
    content: str
    thinking: str = ""
    interrupted: bool = False
    stats: Mapping[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SavedModel:
    """A model of a saved session.

    Args:
        name: What the user called it; empty for the built-in one.
        quant: The weight format asked for.
        revision: Commit of a hub model, where known.
        ran_as: What really ran, in words; for people only.
    """

    name: str
    quant: str = "auto"
    revision: str | None = None
    ran_as: str = ""


@dataclass(frozen=True, slots=True)
class Transcript:
    """A whole session.

    Args:
        messages: All of them, oldest first.
        system: System message.
        target: The target.
        drafter: `model`, `lookup`, `model+lookup` or `none`.
        draft: The draft model, for `model`.
        settings: What was set with options and `/set`, by name.
        created: When the session began, ISO 8601.
    """

    messages: tuple[ChatMessage, ...]
    system: str | None
    target: SavedModel
    drafter: str
    draft: SavedModel | None
    settings: Mapping[str, Figure]
    created: str


def to_json(transcript: Transcript, version: str) -> bytes:
    """The document of a session. Pure ASCII, so that no terminal acts on it and lone surrogates survive.

    Args:
        transcript: The session.
        version: Version of the program that writes it.
    """
    document = {
        "schema_version": SCHEMA_VERSION,
        "specgen_version": version,
        "created": transcript.created,
        "target": _model_document(transcript.target),
        "drafter": transcript.drafter,
        "draft": None if transcript.draft is None else _model_document(transcript.draft),
        "settings": dict(transcript.settings),
        "system": transcript.system,
        "messages": [_message_document(message) for message in transcript.messages],
    }
    return (json.dumps(document, indent=1) + "\n").encode("ascii")


def from_json(data: bytes) -> Transcript:
    """The session of a document.

    Raises:
        TranscriptError: It is damaged, of a later version, or something else altogether.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TranscriptError(f"it is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise TranscriptError("it is no JSON object")
    version = document.get("schema_version")
    if type(version) is not int or version < 1:
        raise TranscriptError("it has no schema_version, so it is no session")
    if version > SCHEMA_VERSION:
        raise TranscriptError(f"it was written by a newer specgen (schema {version}, this one knows {SCHEMA_VERSION})")
    draft = document.get("draft")
    return Transcript(
        messages=tuple(_message(item) for item in _value(document, "messages", list)),
        system=_text_or_none(document, "system"),
        target=_model(_value(document, "target", dict)),
        drafter=_value(document, "drafter", str),
        draft=None if draft is None else _model(_value(document, "draft", dict)),
        settings=_figures(document, "settings"),
        created=_value(document, "created", str),
    )


def _message_document(message: ChatMessage) -> dict[str, Any]:
    document: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.thinking:
        document["thinking"] = message.thinking
    if message.interrupted:
        document["interrupted"] = True
    if message.stats:
        document["stats"] = dict(message.stats)
    return document


def _message(item: object) -> ChatMessage:
    if not isinstance(item, dict):
        raise TranscriptError("a message is no JSON object")
    role = _value(item, "role", str)
    if role not in ("user", "assistant"):
        raise TranscriptError(f"a message has the role {role[:40]!r}")
    return ChatMessage(
        cast(Role, role),
        _value(item, "content", str),
        _value(item, "thinking", str, ""),
        _value(item, "interrupted", bool, False),
        _figures(item, "stats"),
    )


def _model_document(model: SavedModel) -> dict[str, Any]:
    return {"name": model.name, "quant": model.quant, "revision": model.revision, "ran_as": model.ran_as}


def _model(item: dict[str, Any]) -> SavedModel:
    return SavedModel(
        _value(item, "name", str),
        _value(item, "quant", str, "auto"),
        _text_or_none(item, "revision"),
        _value(item, "ran_as", str, ""),
    )


def _value(document: Mapping[str, Any], key: str, kind: type[T], default: T | None = None) -> T:
    found = document.get(key, default)
    if not isinstance(found, kind):
        raise TranscriptError(f"{key} is missing or no {kind.__name__}")
    return found


def _text_or_none(document: Mapping[str, Any], key: str) -> str | None:
    found = document.get(key)
    if found is not None and not isinstance(found, str):
        raise TranscriptError(f"{key} is no text")
    return found


def _figures(document: Mapping[str, Any], key: str) -> dict[str, Figure]:
    found = _value(document, key, dict, {})
    for value in found.values():
        if value is not None and not isinstance(value, int | float | str):
            raise TranscriptError(f"{key} holds more than numbers and text")
    return found
