"""A drafter without a model: guesses that the text goes on as it did after the same few tokens before."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from specgen.engine.drafters import empty_draft
from specgen.engine.lengths import LengthPolicy
from specgen.engine.verification import Draft

LONGEST_KEY = 4
SHORTEST_KEY = 2
"""A single repeated token says too little: drafts from it are mostly refused, and checking them is not free."""

DOUBT = 2.0
"""First guess of how far a match of m tokens can be trusted: m / (m + doubt). Corrected by what is accepted."""


class LookupDrafter:
    """Prompt lookup over the text so far, prompt and answer alike.

    The index maps each run of `SHORTEST_KEY` to `LONGEST_KEY` tokens to where it last ended and grows with the text,
    so a proposal costs a few dictionary look-ups however long the text is.
    Source: Saxena 2023 (prompt lookup decoding); a point-mass draft, so verification keeps the target's law.
    """

    def __init__(self) -> None:
        self._indexed: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}

    def feed(self, ids: Sequence[int]) -> None:
        """Index `ids` up to its last token, which is the suffix a proposal looks for."""
        for end in range(len(self._indexed) + 1, len(ids)):
            self._indexed.append(ids[end - 1])
            for length in range(SHORTEST_KEY, min(LONGEST_KEY, end) + 1):
                self._ends[tuple(self._indexed[end - length :])] = end

    def propose(self, ids: Sequence[int], limit: int, lengths: LengthPolicy) -> Draft:
        self.feed(ids)
        for length in range(min(LONGEST_KEY, len(ids) - 1), SHORTEST_KEY - 1, -1):
            end = self._ends.get(tuple(ids[-length:]))
            if end is not None:
                matched = _match_length(ids, end)
                # The longer the match, the further it is trusted.
                longest = min(limit, 2 * matched, len(ids) - end)
                return Draft(torch.tensor(ids[end : end + _wanted(longest, matched, lengths)], dtype=torch.int64))
        return empty_draft()

    def rewind(self, length: int) -> None:
        """Start over if indexed text was taken back (a chat turn undone); rejected drafts never were in the index."""
        if length < len(self._indexed):
            self._indexed.clear()
            self._ends.clear()


def _wanted(longest: int, matched: int, lengths: LengthPolicy) -> int:
    """How many of the tokens at hand the policy wants. Each was right as often as a match of its length suggests."""
    num_wanted = 0
    while num_wanted < longest and lengths.wants_more():
        lengths.drew(matched / (matched + DOUBT))
        num_wanted += 1
    return num_wanted


def _match_length(ids: Sequence[int], end: int, longest: int = 32) -> int:
    """How many tokens before `end` equal the last tokens of `ids`."""
    length = 0
    while length < min(longest, end) and ids[end - 1 - length] == ids[-1 - length]:
        length += 1
    return length
