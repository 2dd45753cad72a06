"""Finds the longest end of a growing text that occurred before, with a suffix automaton in plain Python."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ROOT = 0
NONE = -1
NUM_UPDATED = 32
"""Shorter suffixes to update for a new occurrence. Real texts have fewer; a run of one token has one per token."""


@dataclass(frozen=True, slots=True)
class Occurrence:
    """The longest end of a text that occurred before, and where.

    Args:
        length: Its number of tokens.
        end: Index after its latest occurrence: of the token that followed.
        num_occurrences: How often it occurred.
        num_same_continuation: How often the token that followed was the one at `end`.
    """

    length: int
    end: int
    num_occurrences: int
    num_same_continuation: int


@dataclass(frozen=True, slots=True)
class Cursor:
    """The longest end of some text that occurs in an automaton's text: a state, and its number of tokens."""

    state: int = ROOT
    length: int = 0


class SuffixAutomaton:
    """Indexes all runs of tokens of a text in amortized constant time per token.

    A state represents runs that end at the same positions; its link leads to the longest shorter run that also ends
    at others. Source: Blumer et al. 1985, "The smallest automaton recognizing the subwords of a text".
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
        """Adds tokens to the text."""
        for token in ids:
            self._add(token)

    @property
    def end(self) -> Cursor:
        """The cursor of the automaton's own text."""
        return Cursor(self._last, self._length[self._last])

    def step(self, cursor: Cursor, token: int) -> Cursor:
        """Returns the cursor of a text after it has grown by `token`."""
        state, length = cursor.state, cursor.length
        while state != NONE and token not in self._next[state]:
            state = self._link[state]
            length = self._length[state] if state != NONE else 0
        return Cursor() if state == NONE else Cursor(self._next[state][token], length + 1)

    def longest_match(self, cursor: Cursor, token: int) -> Occurrence | None:
        """Returns the longest end of a text followed by `token` that occurs here; None if `token` does not occur.

        Args:
            cursor: Of the text, which may be the automaton's own.
            token: The token after it.
        """
        after = self.step(cursor, token)
        if not after.length:
            return None
        state = after.state
        end = self._end[state]
        # A run at the end of the text is followed by `token`, which is not indexed yet.
        is_last = end == len(self.ids)
        following = self._next[state].get(token if is_last else self.ids[end])
        num_same_continuation = is_last + (0 if following is None else self._count[following])
        return Occurrence(after.length, end, self._count[state], num_same_continuation)

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
        self._update_suffixes(self._link[new])

    def _split(self, state: int, token: int) -> int:
        """Returns a state of its own for the run of `state` followed by `token`, split from longer runs."""
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

    def _update_suffixes(self, state: int) -> None:
        """Records that the runs of `state` and of its links also end here."""
        for _ in range(NUM_UPDATED):
            if state == ROOT:
                return
            self._end[state] = len(self.ids)
            self._count[state] += 1
            state = self._link[state]
