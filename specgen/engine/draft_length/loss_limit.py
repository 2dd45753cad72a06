"""Limits the time that the drafts of one text may lose against plain decoding.

The policy expects that drafts are accepted in a new text as in earlier ones. If the text is of another kind, the policy
needs six to eight rejections to notice. Two drafts with acceptance rates of 47 and 62 % were rejected in nearly all
rounds of translations, which were written at 0.89x and 0.90x.
"""

from __future__ import annotations

from math import log2

ALLOWANCE = 1.0
"""Tokens of plain decoding that the drafts of a text may lose."""
PER_DOUBLING = 0.25
"""Added whenever the text has doubled."""
LONG_TEXT_SHARE = 0.01
"""Share of a long text that may be lost, if that is more."""
READING_SHARE, READING_FROM = 0.02, 64
"""Share of a text that reading what the draft model missed may take without being a loss, whenever the text has doubled
since the last draft and since it had so many tokens. The cost of reading grows with the text, the limit more slowly: in
simulated runs, a text of 1200 tokens was not drafted again after 15 rejected ones, and written at 1.0x, not at 1.6x."""
RISKED_SHARE = 0.5
"""Share of the remaining loss that a draft of several tokens may take: a single rejection does not end drafting."""


class LossLimit:
    """Permits drafts while the loss of a text stays below a limit that grows with the logarithm of its length.

    A text that the draft can't guess is left with two or three single tokens, each after about twice as much text as
    the one before. An accepted token pays for the next draft, so a text that only began badly is drafted again soon. No
    rule that has to find out which of two options is better loses less than a logarithm: Lai and Robbins 1985 (Adv.
    Appl. Math. 6, p. 4).

    In simulated runs (`python -m tests.engine.categories`), texts of 64 tokens of which 5 % are accepted are written at
    0.974x instead of 0.915x, and good ones 1 % slower: a few of them begin with several rejections. A limit that grows
    with the length costs twice as much there.
    """

    def __init__(self) -> None:
        self._lost = 0.0
        self._num_tokens = 0
        self._last_draft = 0
        """Tokens of the text at the last draft."""

    def start_text(self) -> None:
        """Prepares for a new text."""
        self._lost = 0.0
        self._num_tokens = 0
        self._last_draft = 0

    def left(self, smallest: float) -> float:
        """Returns the tokens of plain decoding that drafts may still lose.

        Args:
            smallest: Loss of the cheapest draft that may pay, if it is rejected. Where it is above a token, the limit
                is so many times higher: a single rejection would end drafting.
        """
        growth = max(PER_DOUBLING * log2(1 + self._num_tokens), LONG_TEXT_SHARE * self._num_tokens)
        return max(smallest, 1.0) * (ALLOWANCE + growth) - self._lost

    def charged(self, reading: float) -> float:
        """Returns how much of the cost of reading missed tokens counts as a loss: all or nothing.

        Args:
            reading: The cost, in tokens of plain decoding.
        """
        has_doubled = self._num_tokens >= 2 * max(self._last_draft, READING_FROM)
        return 0.0 if has_doubled and reading <= READING_SHARE * self._num_tokens else reading

    def observe(self, lost: float, num_tokens: int, *, is_drafted: bool = False) -> None:
        """Charges a round.

        Args:
            lost: Tokens of plain decoding that its draft lost; negative if it gained.
            num_tokens: That the text grew by.
            is_drafted: The draft model made a draft.
        """
        if is_drafted:
            self._last_draft = self._num_tokens
        self._lost += lost
        self._num_tokens += num_tokens
