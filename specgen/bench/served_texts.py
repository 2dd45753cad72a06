"""Compares the texts of servers with those of the server without drafts."""

from __future__ import annotations

import math
from collections.abc import Callable

from specgen.bench.results import Difference
from specgen.core.errors import SpecgenError
from specgen.core.results import LogitGap
from specgen.runtime.servers.answer import first_character
from specgen.runtime.servers.server import Server
from specgen.runtime.servers.values import Acceptance, ChatRequest, Json, part

NEAR_TIE = 0.25
"""Largest gap of two log-probabilities that rounding explains: two steps of bfloat16 at a logit of 16 to 32."""


class ServedTexts:
    """The last text of every setting and prompt, and where it first differed from the baseline's.

    Args:
        baseline: The server without drafts.
        request: Makes the request of a prompt for it.
        add_acceptance: Takes what it reports when it is asked for its log-probabilities.
    """

    def __init__(
        self,
        baseline: Server,
        request: Callable[[int, Server], ChatRequest],
        add_acceptance: Callable[[Acceptance | None], None],
    ) -> None:
        self.differences: dict[tuple[int, int], Difference] = {}
        self.compared: set[tuple[int, int]] = set()
        self._texts: dict[tuple[int, int], str] = {}
        self._baseline, self._request, self._add_acceptance = baseline, request, add_acceptance

    def keep(self, setting: int, prompt: int, text: str) -> None:
        """Keeps the text of a run; may be called in any thread."""
        self._texts[setting, prompt] = text

    def compare(self, setting: int, prompt: int, baseline: int) -> None:
        """Compares the last text of a setting with that of its baseline, if there are both."""
        own, other, key = self._texts.get((baseline, prompt)), self._texts.get((setting, prompt)), (setting, prompt)
        if own is None or other is None:
            return
        self.compared.add(key)
        at = first_character(own, other)
        if at is not None and key not in self.differences:
            self.differences[key] = Difference(setting, prompt, at, self._gap(prompt, at, other))

    def _gap(self, prompt: int, position: int, other: str) -> LogitGap:
        """Returns the gap of the baseline's two likeliest tokens where the texts part, if the second is the other's.

        NaN if the server sends no log-probabilities, infinite if the other's is not among its two.
        """
        server = self._baseline
        body = server.body(self._request(prompt, server), stream=False) | {"logprobs": True, "top_logprobs": 2}
        try:
            document, figures = server.complete(body)
        except SpecgenError:
            return LogitGap(math.nan, NEAR_TIE)
        self._add_acceptance(figures.acceptance)
        start = 0
        for token in _tokens(document):
            text = token["token"]
            if start <= position < start + len(text):
                return LogitGap(_distance(token, other[start:]), NEAR_TIE)
            start += len(text)
        return LogitGap(math.nan, NEAR_TIE)


def _tokens(document: Json) -> list[Json]:
    choices = document.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else {}
    content = part(choice, "logprobs").get("content")
    tokens = content if isinstance(content, list) else []
    return [one for one in tokens if isinstance(one, dict) and isinstance(one.get("token"), str)]


def _distance(token: Json, other: str) -> float:
    """Returns how much likelier the token is than the one that the other text begins with; see `LogitGap`."""
    candidates = token.get("top_logprobs")
    own = token.get("logprob")
    for one in candidates if isinstance(candidates, list) else []:
        text, value = (one.get("token"), one.get("logprob")) if isinstance(one, dict) else (None, None)
        is_other = isinstance(text, str) and text != token["token"] and text and other.startswith(text)
        if is_other and isinstance(value, (int, float)) and isinstance(own, (int, float)):
            return abs(own - value)
    return math.inf if isinstance(candidates, list) and candidates else math.nan
