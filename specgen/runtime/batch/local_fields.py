"""Reads the fields of OpenAI requests that this machine's models answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from specgen.core.batch import BatchRequest
from specgen.core.errors import SettingsError
from specgen.core.settings import RESERVED_VARIABLES, DecodeSettings, SamplingSettings
from specgen.text.chat_template import ChatTemplate

IGNORED = frozenset({"model", "user", "metadata", "store", "stream_options", "service_tier"})
"""Fields that don't change the text. The model is the one of the command line."""
FIXED: dict[str, Any] = {
    "n": 1,
    "stream": False,
    "logprobs": False,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "response_format": {"type": "text"},
}
"""Fields with the only value that is answered here: their default."""
_SAMPLING: dict[str, type] = {
    "temperature": float,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
    "top_k": int,
    "seed": int,
}


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """Settings of requests that set nothing themselves.

    Args:
        sampling: How tokens are chosen.
        sampling_source: Where that comes from.
        decode: Draft length, end tokens and more; its `max_new_tokens` is the default.
        max_new_tokens: As given by the user; None cuts the default to the window.
        stops: Texts that end an answer.
        template: None continues the text without a chat template.
    """

    sampling: SamplingSettings
    sampling_source: str
    decode: DecodeSettings
    max_new_tokens: int | None
    stops: tuple[str, ...]
    template: ChatTemplate | None


@dataclass(frozen=True, slots=True)
class RequestSettings:
    """What a request sets itself.

    Args:
        sampling: Fields of `SamplingSettings`.
        max_new_tokens: Most tokens of the answer; None: that of the command line.
        stops: Texts that end the answer, besides those of the command line.
        template_variables: Variables for the chat template.
    """

    sampling: Mapping[str, Any] = field(default_factory=dict)
    max_new_tokens: int | None = None
    stops: tuple[str, ...] = ()
    template_variables: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, base: SamplingSettings) -> SamplingSettings:
        """Returns the sampling settings of the request."""
        return replace(base, **self.sampling)


def read_settings(request: BatchRequest) -> RequestSettings:
    """Checks the fields of a request.

    Raises:
        SettingsError: A field is unknown, or its value is invalid; the message names both and the request.
    """
    sampling: dict[str, Any] = {}
    limit: int | None = None
    stops: tuple[str, ...] = ()
    variables: dict[str, Any] = {}
    for name, value in request.fields.items():
        if name in IGNORED or (name in FIXED and value == FIXED[name]):
            continue
        if name in _SAMPLING and _is_number(value, _SAMPLING[name]):
            sampling[name] = value
        elif name in ("max_tokens", "max_completion_tokens") and _is_number(value, int) and value >= 1:
            limit = value
        elif name == "stop" and (texts := _stops(value)) is not None:
            stops = texts
        elif name == "chat_template_kwargs" and isinstance(value, dict) and not RESERVED_VARIABLES & value.keys():
            variables = value
        else:
            raise _refused(request, f"{name!r}: {value!r}"[:200])
    try:
        SamplingSettings(**sampling)
    except SettingsError as error:
        raise _refused(request, error.message) from error
    return RequestSettings(sampling, limit, stops, variables)


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)


def _stops(value: Any) -> tuple[str, ...] | None:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        return None
    return tuple(texts)


def _refused(request: BatchRequest, what: str) -> SettingsError:
    return SettingsError(
        f"request {request.id!r} has a field that can't be answered on this machine: {what}",
        "omit it, or answer the batch with --server URL, which passes it on",
    )
