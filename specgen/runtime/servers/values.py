"""Defines what is known of a server and what it says of an answer, as frozen values. Standard library only."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from specgen.core.errors import SettingsError
from specgen.runtime.servers import KEY_VARIABLE

Json = dict[str, Any]
_KEY = re.compile(r"[!-~]+", re.ASCII)
_HINT = "give the address of a server, as in http://host:8000"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is, and the key for it, which no `repr` and no message contains.

    Args:
        url: Scheme, host and path, without a slash at the end and without `/v1`.
        key: Sent as `Authorization: Bearer ...`; empty: none is sent.
    """

    url: str
    key: str = field(default="", repr=False)

    @property
    def host(self) -> str:
        """Host and port, for messages."""
        return urlsplit(self.url).netloc

    @property
    def is_loopback(self) -> bool:
        """Whether the server is on this machine."""
        name = urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return name == "localhost" or name.endswith(".localhost")


def parse_address(url: str, key_variable: str = KEY_VARIABLE, *, allows_insecure_key: bool = False) -> Address:
    """Returns the address for a URL, with the key from an environment variable.

    Args:
        url: `http://host:8000`, with or without `/v1`.
        key_variable: Name of the variable; a missing or empty one means no key.
        allows_insecure_key: Send the key over plain http to another host, too.

    Raises:
        SettingsError: The URL has another scheme, a user name, a query, or no host; the key has invalid characters,
            or would cross the network in the clear.
    """
    try:
        parts = urlsplit(url.strip())
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        parts, is_address = urlsplit(""), False
    if "@" in url:
        # The message must not repeat what may be a password.
        raise SettingsError("a server's URL can't contain a user or a password", f"put the key into {KEY_VARIABLE}")
    if not is_address or parts.query or parts.fragment:
        raise SettingsError(f"invalid --server {url!r}", _HINT)
    path = parts.path.rstrip("/").removesuffix("/v1")
    key = os.environ.get(key_variable, "")
    if key and not _KEY.fullmatch(key):
        raise SettingsError(f"the key in {key_variable} contains a space or a character that is not ASCII")
    address = Address(f"{parts.scheme}://{parts.netloc}{path}", key)
    if key and parts.scheme == "http" and not address.is_loopback and not allows_insecure_key:
        raise SettingsError(
            f"the key in {key_variable} would cross the network unencrypted to {address.host}",
            "use https, or add --insecure-key if you trust the network",
        )
    return address


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """Describes a server by what it says of itself.

    Args:
        engine: `llama-server`, `vLLM`, `SGLang`, `LM Studio` or `OpenAI-compatible server`.
        version: Empty if it does not say.
        model: Id of the model that answers.
        root: What that model was loaded from; empty if unknown.
        window: Its context window in tokens; None if unknown.
        does_speculate: Whether drafts are on; None if only an answer shows it.
        exposes: What it reports beyond text, for `doctor`.
        advice: What would make it report more; empty if nothing is missing.
    """

    engine: str
    version: str
    model: str
    root: str = ""
    window: int | None = None
    does_speculate: bool | None = None
    exposes: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Engine and version."""
        return f"{self.engine} {self.version}".rstrip()


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Counts of drafted and accepted tokens, from one answer or from a server's counters.

    Args:
        num_drafted: Drafted tokens.
        num_accepted: Those that were kept.
        num_rounds: Rounds that drafted something; None if unknown.
        num_rejected: Tokens that were tested and rejected, at most one a round; None if unknown.
        accepted_histogram: `[j]`: rounds that accepted exactly j tokens; empty if unknown.
        steps: Drafted and accepted tokens of each round; empty if unknown.
        accepted_by_position: Kept tokens by position in the draft; empty if unknown.
        source: `response`: of this request; `metrics`: growth of the server's counters.
    """

    num_drafted: int
    num_accepted: int
    num_rounds: int | None = None
    num_rejected: int | None = None
    accepted_histogram: tuple[int, ...] = ()
    steps: tuple[tuple[int, int], ...] = ()
    accepted_by_position: tuple[int, ...] = ()
    source: Literal["response", "metrics"] = "response"

    @property
    def is_consistent(self) -> bool:
        """Whether the counts agree with each other."""
        rounds, histogram, steps = self.num_rounds, self.accepted_histogram, self.steps
        return (
            0 <= self.num_accepted <= self.num_drafted
            and (rounds is None or 0 <= rounds <= self.num_drafted)
            and (not self.num_drafted or rounds is None or rounds > 0)
            and (self.num_rejected is None or self.num_rejected <= self.num_drafted - self.num_accepted)
            and all(0 <= accepted <= drafted for drafted, accepted in steps)
            and (
                not steps
                or (sum(a for _, a in steps), sum(d for d, _ in steps)) == (self.num_accepted, self.num_drafted)
            )
            and (not histogram or sum(i * n for i, n in enumerate(histogram)) == self.num_accepted)
            and (not histogram or rounds is None or sum(histogram) == rounds)
            and sum(self.accepted_by_position) in (0, self.num_accepted)
        )


@dataclass(frozen=True, slots=True)
class EventFigures:
    """What one event of a stream says besides its text. None where it does not say.

    Args:
        num_tokens: Tokens of the answer so far.
        num_drafted: Drafted tokens so far; `num_accepted` those that were kept.
        num_prompt_tokens: Of the prompt; `num_cached_tokens` those that the server had in its cache.
        decode_seconds: The server's own time from the first token to this event.
        acceptance: The counts of the whole answer.
        problem: What in it contradicts itself, for a notice.
    """

    num_tokens: int | None = None
    num_drafted: int | None = None
    num_accepted: int | None = None
    num_prompt_tokens: int | None = None
    num_cached_tokens: int | None = None
    decode_seconds: float | None = None
    acceptance: Acceptance | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Delta:
    """One event of a streamed answer.

    Args:
        text: Text of the answer; `reasoning` is text of a reasoning block that the server separates.
        finish_reason: The server's word for the end; None before it.
        num_new_tokens: Tokens of this event; None if it does not say.
        figures: What else it says.
    """

    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    num_new_tokens: int | None = None
    figures: EventFigures = field(default_factory=EventFigures)


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What a server is asked.

    Args:
        messages: `role` and `content` of each turn.
        max_tokens: Most tokens of the answer.
        sampling: By our names: `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`, `seed`.
        stops: Stop strings.
        ignore_eos: Continue after the model's end token.
        fields: Further fields of the body, such as `chat_template_kwargs`; they take precedence.
    """

    messages: Sequence[Mapping[str, str]]
    max_tokens: int
    sampling: Mapping[str, float] = field(default_factory=dict)
    stops: Sequence[str] = ()
    ignore_eos: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)


def count(document: Any, name: str) -> int | None:
    """Returns an integer of at least 0 from a JSON object; None if it is missing or anything else."""
    value = document.get(name) if isinstance(document, dict) else None
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53
    return value if is_count else None


def counts(document: Any, name: str) -> tuple[int, ...] | None:
    """Returns a list of such integers; None if it is missing or one is anything else."""
    values = document.get(name) if isinstance(document, dict) else None
    if not isinstance(values, list) or len(values) > 1_000_000:
        return None
    found = [count({"value": value}, "value") for value in values]
    return None if None in found else tuple(value for value in found if value is not None)


def seconds(document: Any, name: str) -> float | None:
    """Returns milliseconds from a JSON object in seconds; None if they are missing, negative or not finite."""
    value = document.get(name) if isinstance(document, dict) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e12:
        return None
    return value / 1000


def part(document: Any, *names: str) -> Json:
    """Returns a JSON object inside another one; an empty one if any on the way is missing or not an object."""
    for name in names:
        document = document.get(name) if isinstance(document, dict) else None
    return document if isinstance(document, dict) else {}


def word(document: Any, name: str) -> str:
    """Returns a string from a JSON object, at most 200 characters; empty if it is missing or not a string."""
    value = document.get(name) if isinstance(document, dict) else None
    return value[:200] if isinstance(value, str) else ""
