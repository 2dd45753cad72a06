"""Finds the rounds of an answer while it streams, from counters that grow once a round."""

from __future__ import annotations

from specgen.core.events import TokenState


class LiveRounds:
    """Follows the counters of drafted and accepted tokens, and decides what each token is.

    A round begins where the count of drafted tokens grows: its accepted tokens come first, then the target's own one.
    As soon as the counters do not fit, nothing is said any more.
    """

    def __init__(self) -> None:
        self.fits = True
        """Whether all counters so far agree."""
        self.steps: list[tuple[int, int]] = []
        """Drafted and accepted tokens of each round."""
        self._num_tokens = self._num_drafted = self._num_accepted = 0
        self._num_pending = 0
        self._own: TokenState | None = None

    def observe(self, num_tokens: int | None, num_drafted: int | None, num_accepted: int | None) -> TokenState | None:
        """Takes the counters that came with a piece of text; returns the state of its last token, if it is known."""
        if num_tokens is None or num_drafted is None or num_accepted is None:
            self.fits = False
        if not self.fits or num_tokens is None or num_drafted is None or num_accepted is None:
            return None
        num_new = num_tokens - self._num_tokens
        drafted, accepted = num_drafted - self._num_drafted, num_accepted - self._num_accepted
        self._num_tokens, self._num_drafted, self._num_accepted = num_tokens, num_drafted, num_accepted
        if drafted > 0:
            # Half a character is held back, so a piece may begin with the last tokens of the round before.
            num_new -= self._num_pending + (self._own is not None)
            self._num_pending = accepted
            self._own = TokenState.BONUS if accepted == drafted else TokenState.CORRECTION
            self.steps.append((drafted, accepted))
        self.fits = num_new > 0 and 0 <= accepted <= drafted
        return self._take(num_new) if self.fits else None

    def _take(self, num_new: int) -> TokenState:
        state = TokenState.TARGET
        for _ in range(min(num_new, self._num_pending + 2)):
            if self._num_pending:
                self._num_pending -= 1
                state = TokenState.ACCEPTED
            else:
                state, self._own = self._own or TokenState.TARGET, None
        return state
