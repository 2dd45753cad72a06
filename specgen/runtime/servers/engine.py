"""Defines what differs between engines: how they are recognised, asked, and read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from specgen.runtime.servers.values import EventFigures, Json, ServerFacts, count, part

Getter = Callable[[str], Json | None]
"""Returns a page of a server as a JSON object; None if it has none."""


class Engine(Protocol):
    """Speaks to the servers of one engine.

    Attributes:
        chat_path: Where chat completions are answered.
        sampling_fields: Names of the sampling settings that it takes, by our names.
        has_ignore_eos: Whether an answer can continue after the end token.
        draft_field: The field of a request that names its draft model; empty: the server decided when it started.
        metrics_prefix: What the names of its counters at `/metrics` begin with; empty if it has none.
    """

    chat_path: str
    sampling_fields: Mapping[str, str]
    has_ignore_eos: bool
    draft_field: str
    metrics_prefix: str

    def facts(self, model: Json, get: Getter) -> ServerFacts | None:
        """Returns what the server says of itself; None if it is another engine.

        Args:
            model: The entry of `/v1/models` for the model that answers.
            get: Reads further pages.
        """

    def request_fields(self) -> Json:
        """Returns the fields of the body that make the engine report more."""

    def read(self, event: Json) -> EventFigures:
        """Returns what an event, or a whole answer, says besides its text."""


CONTRADICTION = "{}'s counts of draft tokens contradict each other"
OPENAI_SAMPLING = {"temperature": "temperature", "top_p": "top_p", "seed": "seed"}


def usage(event: Json) -> EventFigures:
    """Returns the counts of OpenAI's `usage`, which all engines send at the end."""
    found = part(event, "usage")
    return EventFigures(
        num_tokens=count(found, "completion_tokens"),
        num_prompt_tokens=count(found, "prompt_tokens"),
        num_cached_tokens=count(part(found, "prompt_tokens_details"), "cached_tokens"),
    )
