"""Pays for trials: drafts that are not expected to pay, made to learn their cost and acceptance."""

from __future__ import annotations

from specgen.core.events import Round

FIRST_EXPLORATION_BUDGET = 0.6
LARGEST_EXPLORATION_BUDGET = 4.0
"""Tokens that trials may lose: at first, and at most."""
LARGEST_CREDIT = 1.5
"""Tokens that ordinary drafts may add to the budget."""
EXPLORATION_SHARE = 0.01
"""Added to the budget with each token: trials cost about this share of the time, however bad the draft."""
LONG_TEXT, LONG_TEXT_SHARE = 100, 0.02
"""Tokens of a text from which on more is spent on trials: what they teach pays longer."""


class Exploration:
    """Decides whether a trial is affordable, and charges its loss to a budget of tokens."""

    def __init__(self) -> None:
        self._budget = FIRST_EXPLORATION_BUDGET
        self._trial_loss: float | None = None
        self._num_tokens = 0
        """Of the present text."""

    def start_text(self) -> None:
        """Prepares for a new text: it starts with at most the first budget."""
        self._num_tokens = 0
        self._budget = min(self._budget, FIRST_EXPLORATION_BUDGET)

    @property
    def is_trial(self) -> bool:
        """Whether this round is a trial."""
        return self._trial_loss is not None

    def can_lose(self, num_tokens: float) -> bool:
        """Returns whether the budget covers a loss of `num_tokens` tokens."""
        return num_tokens <= self._budget

    def start_trial(self, loss: float) -> None:
        """Makes this round a trial with an expected loss, in tokens of plain decoding."""
        self._trial_loss = loss

    def end_trial(self) -> None:
        """Makes this round an ordinary one."""
        self._trial_loss = None

    def observe(self, round_: Round, lost: float | None) -> None:
        """Charges what a round lost.

        Of a trial, that is its expected loss: a few rejected tokens are too little evidence to stop trials, and a first
        pass may take many times as long as later ones. Other drafts that lose use up the budget, too: where they were
        tried enough, no trial is needed.

        Args:
            lost: Tokens that a draft lost against plain decoding; None without a draft.
        """
        if self._trial_loss is not None:
            self._budget -= max(self._trial_loss, 0.0)
        elif lost is not None:
            self._budget = max(min(self._budget, 0.0), min(self._budget - lost, max(self._budget, LARGEST_CREDIT)))
        self._num_tokens += len(round_.token_ids)
        share = LONG_TEXT_SHARE if self._num_tokens > LONG_TEXT else EXPLORATION_SHARE
        self._budget = min(self._budget + share * len(round_.token_ids), LARGEST_EXPLORATION_BUDGET)
