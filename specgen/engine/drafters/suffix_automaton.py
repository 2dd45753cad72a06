"""A text that grows, in; for its end, the longest run of tokens that occurred before, and where. Plain Python."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ROOT = 0
NONE = -1
NUM_NOTED = 32
"""Shorter suffixes that learn of a new occurrence. Real texts have fewer; a run of one token has as many as tokens."""


@dataclass(frozen=True, slots=True)
class Match:
    """The longest end of a text that occurred before.

    Args:
        length: Its tokens.
        end: Index behind its latest occurrence: where the text went on then.
        num_occurrences: How often it occurred.
        num_alike: How often it went on with the same token as at `end`.
    """

    length: int
    end: int
    num_occurrences: int
    num_same_continuation: int


@dataclass(frozen=True, slots=True)
class Cursor:
    """The longest end of some text that occurs in an automaton's: a state, and how many tokens."""

    state: int = ROOT
    length: int = 0


class SuffixAutomaton:
    """All runs of tokens of a text, found in amortized constant time per token.

    A state stands for runs that end at the same places; its link leads to the longest shorter run that also ends
    elsewhere. Source: Blumer et al. 1985, "The smallest automaton recognizing the subwords of a text".
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._next: list[dict[int, int]] = [{}]
        self._link = [NONE]
        self._length = [0]
        self._end = [0]
        self._count = [0]
        self._last = ROOT

    def extend(self, ids: Iterable[int]) -> None:
        """Add tokens to the text."""
        for token in ids:
            self._add(token)

    @property
    def last(self) -> Cursor:
        """The place of the automaton's own text."""
        return Cursor(self._last, self._length[self._last])

    def step(self, place: Cursor, token: int) -> Cursor:
        """The place of a text that has grown by `token`."""
        state, length = place.state, place.length
        while state != NONE and token not in self._next[state]:
            state = self._link[state]
            length = self._length[state] if state != NONE else 0
        return Cursor() if state == NONE else Cursor(self._next[state][token], length + 1)

    def match(self, place: Cursor, token: int) -> Match | None:
        """The longest run that ends a text followed by `token` and occurs here; None if `token` does not.

        Args:
            place: Of the text, which may be the automaton's own.
            token: What comes behind it.
        """
        found = self.step(place, token)
        if not found.length:
            return None
        length, state = found.length, found.state
        end = self._end[state]
        # A run that ended with the text went on with `token`, which is not indexed yet.
        is_last = end == len(self.ids)
        following = self._next[state].get(token if is_last else self.ids[end])
        num_same_continuation = is_last + (0 if following is None else self._count[following])
        return Match(length, end, self._count[state], num_same_continuation)

    def _add(self, token: int) -> None:
        self.ids.append(token)
        new = self._state({}, ROOT, self._length[self._last] + 1, 1)
        state = self._last
        while state != NONE and token not in self._next[state]:
            self._next[state][token] = new
            state = self._link[state]
        if state != NONE:
            self._link[new] = self._split(state, token)
        self._last = new
        self._note(self._link[new])

    def _split(self, state: int, token: int) -> int:
        """The state of the run of `state` followed by `token` alone, parted from longer runs it shared one with."""
        shared = self._next[state][token]
        if self._length[shared] == self._length[state] + 1:
            return shared
        copy = self._state(dict(self._next[shared]), self._link[shared], self._length[state] + 1, self._count[shared])
        self._end[copy] = self._end[shared]
        self._link[shared] = copy
        while state != NONE and self._next[state].get(token) == shared:
            self._next[state][token] = copy
            state = self._link[state]
        return copy

    def _state(self, following: dict[int, int], link: int, length: int, count: int) -> int:
        self._next.append(following)
        self._link.append(link)
        self._length.append(length)
        self._end.append(len(self.ids))
        self._count.append(count)
        return len(self._length) - 1

    def _note(self, state: int) -> None:
        """The runs of `state` and of its links have just ended here, too."""
        for _ in range(NUM_NOTED):
            if state == ROOT:
                return
            self._end[state] = len(self.ids)
            self._count[state] += 1
            state = self._link[state]
