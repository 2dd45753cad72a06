"""Defines the content of a saved chat session, and converts it to and from versioned JSON.

A session contains text and settings, never token ids, because these belong to one tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar, cast

from specgen.core import __version__

SCHEMA_VERSION = 1

Role = Literal["user", "assistant"]
Scalar = float | int | str | None
T = TypeVar("T")


class TranscriptError(Exception):
    """A document is not a saved session, or has a later version. The text gives the reason, in one line."""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message.

    Args:
        role: Its author.
        content: The text that later turns contain.
        thinking: A reasoning block before it, shown to the user and left out of later turns.
        interrupted: Whether Ctrl-C, the length limit or an error cut it off.
        stats: Statistics of the reply.
    """

    role: Role
    content: str
    thinking: str = ""
    interrupted: bool = False
    stats: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SavedModel:
    """A model of a saved session.

    Args:
        name: The name the user gave; empty for the built-in model.
        quant: The requested weight format.
        revision: Commit of a hub model; None if unknown.
        ran_as: Description of the model as it ran, for display only.
    """

    name: str
    quant: str = "auto"
    revision: str | None = None
    ran_as: str = ""


@dataclass(frozen=True, slots=True)
class Transcript:
    """A session.

    Args:
        messages: All of them, oldest first.
        system: System message.
        target: The target.
        drafter: `model`, `lookup`, `model+lookup`, `none`, or `server` if a server replied.
        draft: The draft model; None for other drafters.
        settings: Values of options and `/set`, by name.
        created: When the session started, ISO 8601.
    """

    messages: tuple[ChatMessage, ...]
    system: str | None
    target: SavedModel
    drafter: str
    draft: SavedModel | None
    settings: Mapping[str, Scalar]
    created: str


def to_json(transcript: Transcript) -> bytes:
    """Encodes a session as JSON in ASCII, so that it has no terminal control sequences and keeps lone surrogates."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "specgen_version": __version__,
        "created": transcript.created,
        "target": asdict(transcript.target),
        "drafter": transcript.drafter,
        "draft": None if transcript.draft is None else asdict(transcript.draft),
        "settings": dict(transcript.settings),
        "system": transcript.system,
        "messages": [_message_document(message) for message in transcript.messages],
    }
    return (json.dumps(document, indent=1) + "\n").encode("ascii")


def from_json(data: bytes) -> Transcript:
    """Decodes a session.

    Raises:
        TranscriptError: The document is damaged, has a later version, or is not a session.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TranscriptError(f"it is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise TranscriptError("it is not a JSON object")
    version = document.get("schema_version")
    if type(version) is not int or version < 1:
        raise TranscriptError("it has no schema_version, so it is not a session")
    if version > SCHEMA_VERSION:
        raise TranscriptError(f"it was written by a newer specgen (schema {version}, supported up to {SCHEMA_VERSION})")
    draft = document.get("draft")
    return Transcript(
        messages=tuple(_message(item) for item in _value(document, "messages", list)),
        system=_text_or_none(document, "system"),
        target=_model(_value(document, "target", dict)),
        drafter=_value(document, "drafter", str),
        draft=None if draft is None else _model(_value(document, "draft", dict)),
        settings=_scalars(document, "settings"),
        created=_value(document, "created", str),
    )


def _message_document(message: ChatMessage) -> dict[str, Any]:
    document = {"role": message.role, "content": message.content}
    optional = {"thinking": message.thinking, "interrupted": message.interrupted, "stats": dict(message.stats)}
    return document | {key: value for key, value in optional.items() if value}


def _message(item: object) -> ChatMessage:
    if not isinstance(item, dict):
        raise TranscriptError("a message is not a JSON object")
    role = _value(item, "role", str)
    if role not in ("user", "assistant"):
        raise TranscriptError(f"a message has the invalid role {role[:40]!r}")
    return ChatMessage(
        cast(Role, role),
        _value(item, "content", str),
        _value(item, "thinking", str, ""),
        _value(item, "interrupted", bool, False),
        _scalars(item, "stats"),
    )


def _model(item: dict[str, Any]) -> SavedModel:
    return SavedModel(
        _value(item, "name", str),
        _value(item, "quant", str, "auto"),
        _text_or_none(item, "revision"),
        _value(item, "ran_as", str, ""),
    )


def _value(document: Mapping[str, Any], key: str, kind: type[T], default: T | None = None) -> T:
    value = document.get(key, default)
    if not isinstance(value, kind):
        raise TranscriptError(f"{key} is missing or not of type {kind.__name__}")
    return value


def _text_or_none(document: Mapping[str, Any], key: str) -> str | None:
    value = document.get(key)
    if value is not None and not isinstance(value, str):
        raise TranscriptError(f"{key} is not a string")
    return value


def _scalars(document: Mapping[str, Any], key: str) -> dict[str, Scalar]:
    values = _value(document, key, dict, {})
    for value in values.values():
        if value is not None and not isinstance(value, int | float | str):
            raise TranscriptError(f"{key} contains a value that is not a number or text")
    return values
