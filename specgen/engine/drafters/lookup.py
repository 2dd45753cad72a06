"""A drafter without a model: guesses that the text goes on as it, or a given text, did after the same tokens before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from specgen.engine.draft_length.acceptance import LookupMatch
from specgen.engine.draft_length.policy import LengthPolicy
from specgen.engine.drafters.base import empty_draft
from specgen.engine.drafters.suffix_automaton import Cursor, Match, SuffixAutomaton
from specgen.engine.verification import Draft

BORDER = -1
"""Ends a given text in the index. No token has this id, so no match reaches across."""


class LookupDrafter:
    """Prompt lookup over the text so far, prompt and answer alike, and over given texts.

    The longest end of the text that occurred before decides: in the text so far if it is as long there, since the text
    itself is nearer than any file. A proposal costs constant time however long the texts are.
    Source: Saxena 2023 (prompt lookup decoding); a point-mass draft, so verification keeps the target's law.

    Args:
        texts: Token ids of texts the answer may repeat.
    """

    def __init__(self, texts: Iterable[Sequence[int]] = ()) -> None:
        self._given = SuffixAutomaton()
        for text in texts:
            self._given.extend([*text, BORDER])
        self._text = SuffixAutomaton()
        self._place = Cursor()
        """Of the text so far in the given ones."""

    @property
    def num_indexed(self) -> int:
        """Tokens of the text so far that are in the index."""
        return len(self._text.ids)

    def feed(self, ids: Sequence[int]) -> None:
        """Index `ids` up to its last token, with which a proposal looks for a match."""
        new = ids[len(self._text.ids) : -1]
        self._text.extend(new)
        if self._given.ids:
            for token in new:
                self._place = self._given.step(self._place, token)

    def propose(self, ids: Sequence[int], limit: int, draft_length: LengthPolicy) -> Draft:
        match = self.match(ids, limit)
        return (
            empty_draft()
            if match is None
            else drafted(match, draft_length.tokens_to_take(match, has_draft_model=False))
        )

    def match(self, ids: Sequence[int], limit: int) -> LookupMatch | None:
        """What followed the longest end of `ids` that occurred before, at most `limit` tokens; None if none did."""
        self.feed(ids)
        here = self._text.match(self._text.last, ids[-1])
        given = self._given.match(self._place, ids[-1])
        if here is not None and (given is None or here.length >= given.length):
            return _offer(here, _repeated(ids, here.end, limit))
        if given is None:
            return None
        following = self._given.ids[given.end : given.end + limit]
        return _offer(given, following[: following.index(BORDER)] if BORDER in following else following)

    def rewind(self, length: int) -> None:
        """Start over if indexed text was taken back (a chat turn undone); rejected drafts never were in the index."""
        if length < len(self._text.ids):
            self._text, self._place = SuffixAutomaton(), Cursor()


def drafted(match: LookupMatch, num_tokens: int) -> Draft:
    """The first tokens of an offer as a draft."""
    return Draft(torch.tensor(match.ids[:num_tokens], dtype=torch.int64), source="lookup")


def _offer(match: Match, ids: Sequence[int]) -> LookupMatch | None:
    return LookupMatch(ids, match.length, match.num_same_continuation < match.num_occurrences) if ids else None


def _repeated(ids: Sequence[int], start: int, count: int) -> list[int]:
    """The text from `start` on; behind its end it is expected to go on repeating itself."""
    period = len(ids) - start
    return [ids[start + index % period] for index in range(count)]
