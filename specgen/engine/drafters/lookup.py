"""Drafts by prompt lookup: proposes the tokens that followed the longest earlier occurrence of the text's end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from specgen.engine.draft_length.acceptance import LookupMatch
from specgen.engine.draft_length.contract import LengthPolicy
from specgen.engine.drafters.base import empty_draft
from specgen.engine.drafters.suffix_automaton import Cursor, Occurrence, SuffixAutomaton
from specgen.engine.verification import Draft

SEPARATOR = -1
"""Ends a given text in the index. No token has this id, so no match crosses texts."""


class LookupDrafter:
    """Looks up the end of the text in the text so far (prompt and answer) and in given texts.

    The longest match wins; the text so far wins a tie, because it is closer than any file. A proposal takes constant
    time, however long the texts are.
    Source: Saxena 2023 (prompt lookup decoding). The draft is a point mass, so verification keeps the target's
    distribution.

    Args:
        texts: Token ids of texts the answer may repeat.
    """

    def __init__(self, texts: Iterable[Sequence[int]] = ()) -> None:
        self._given = SuffixAutomaton()
        for text in texts:
            self._given.extend([*text, SEPARATOR])
        self._text = SuffixAutomaton()
        self._cursor = Cursor()
        """Where the text so far ends in the given texts."""

    @property
    def num_indexed(self) -> int:
        """Tokens of the text so far that are in the index."""
        return len(self._text.ids)

    def feed(self, ids: Sequence[int]) -> None:
        """Indexs `ids` without its last token, which the next proposal searches with."""
        new = ids[len(self._text.ids) : -1]
        self._text.extend(new)
        if self._given.ids:
            for token in new:
                self._cursor = self._given.step(self._cursor, token)

    def propose(self, ids: Sequence[int], limit: int, draft_length: LengthPolicy) -> Draft:
        match = self.match(ids, limit)
        return (
            empty_draft()
            if match is None
            else drafted(match, draft_length.tokens_to_take(match, has_draft_model=False))
        )

    def match(self, ids: Sequence[int], limit: int) -> LookupMatch | None:
        """Returns at most `limit` tokens that followed the longest earlier occurrence of the end of `ids`, if any."""
        return next(iter(self.matches(ids, limit)), None)

    def matches(self, ids: Sequence[int], limit: int) -> list[LookupMatch]:
        """Returns the tokens after the longest earlier occurrence in the text and in the given texts, best first."""
        self.feed(ids)
        found: list[tuple[int, LookupMatch | None]] = []
        if (here := self._text.longest_match(self._text.end, ids[-1])) is not None:
            found.append((here.length, _lookup_match(here, _repeated(ids, here.end, limit))))
        if (given := self._given.longest_match(self._cursor, ids[-1])) is not None:
            following = self._given.ids[given.end : given.end + limit]
            following = following[: following.index(SEPARATOR)] if SEPARATOR in following else following
            found.append((given.length, _lookup_match(given, following)))
        # Sorting is stable: the text so far wins a tie.
        found.sort(key=lambda pair: -pair[0])
        return [match for _, match in found if match is not None]

    def rewind(self, length: int) -> None:
        """Drops the index if indexed text was removed (a chat turn undone); rejected drafts are never indexed."""
        if length < len(self._text.ids):
            self._text, self._cursor = SuffixAutomaton(), Cursor()

    def release(self) -> None:
        self.rewind(0)


def drafted(match: LookupMatch, num_tokens: int) -> Draft:
    """Returns the first tokens of a match as a draft."""
    return Draft(torch.tensor(match.ids[:num_tokens], dtype=torch.int64), source="lookup")


def _lookup_match(occurrence: Occurrence, ids: Sequence[int]) -> LookupMatch | None:
    is_ambiguous = occurrence.num_same_continuation < occurrence.num_occurrences
    return LookupMatch(ids, occurrence.length, is_ambiguous) if ids else None


def _repeated(ids: Sequence[int], start: int, count: int) -> list[int]:
    """Returns `count` tokens from `start` on; after its end the text is expected to repeat itself."""
    period = len(ids) - start
    return [ids[start + index % period] for index in range(count)]
