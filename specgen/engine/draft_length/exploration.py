"""Pays for trials: drafts that are not expected to pay, made to learn their cost and acceptance."""

from __future__ import annotations

from specgen.core.events import Round
from specgen.engine.draft_length.cost_table import CostTable

FIRST_EXPLORATION_BUDGET = 1.5
LARGEST_EXPLORATION_BUDGET = 4.0
"""Tokens that trials may lose: at first, and at most."""
EXPLORATION_SHARE = 0.01
"""Added to the budget with each token: trials cost about this share of the time, however bad the draft."""


class Exploration:
    """Decides whether a trial is affordable, and charges its loss to a budget of tokens.

    Args:
        costs: The target's.
    """

    def __init__(self, costs: CostTable) -> None:
        self._costs = costs
        self._budget = FIRST_EXPLORATION_BUDGET
        self._expected_tokens: float | None = None

    @property
    def is_trial(self) -> bool:
        """Whether this round is a trial."""
        return self._expected_tokens is not None

    def can_lose(self, num_tokens: float) -> bool:
        """Returns whether the budget covers a loss of so many tokens."""
        return num_tokens <= self._budget

    def start_trial(self, expected_tokens: float) -> None:
        """Makes this round a trial of a draft that is expected to yield so many tokens."""
        self._expected_tokens = expected_tokens

    def end_trial(self) -> None:
        """Makes this round an ordinary one."""
        self._expected_tokens = None

    def observe(self, round_: Round) -> None:
        """Charges a trial's time, in tokens of plain decoding, less its expected tokens.

        The tokens of the trial itself are not subtracted: a few rejected tokens are too little evidence to stop trials.
        """
        if self._expected_tokens is not None:
            self._budget -= max(round_.seconds / self._costs.seconds(1) - 1 - self._expected_tokens, 0.0)
        self._budget = min(self._budget + EXPLORATION_SHARE * len(round_.token_ids), LARGEST_EXPLORATION_BUDGET)
