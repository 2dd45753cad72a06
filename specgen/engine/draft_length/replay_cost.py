"""Prices the tokens that a target with running states feeds again after a rejected draft.

Such a target returns to the states before the draft. The accepted tokens then go in front of the next draft: a round
with r of them and n drafted tokens costs v(r + 1 + n). If the next draft is rejected, too, they are fed once more, and
the new ones with them; a round without a draft ends that.
"""

from __future__ import annotations

from specgen.engine.draft_length.cost_table import CostTable


class ReplayCost:
    """Costs of this round's pass, and of the replay that follows its rejection.

    Args:
        costs: The target's.
    """

    def __init__(self, costs: CostTable) -> None:
        self._costs = costs
        self._num_replayed = 0
        self._replays = False
        """Whether the target was ever seen to feed tokens again; the first rejected draft shows it."""

    def start_round(self, num_replayed: int) -> None:
        """Notes how many tokens this round's pass feeds again."""
        self._num_replayed = num_replayed
        self._replays = self._replays or num_replayed > 0

    def pass_seconds(self, num_tokens: int) -> float:
        """Returns the cost of this round's pass over `num_tokens` tokens and those fed again."""
        return self._costs.seconds(self._num_replayed + num_tokens)

    def optimistic_seconds(self, num_tokens: int) -> float:
        """Returns the same by `CostTable.optimistic_seconds`."""
        return self._costs.optimistic_seconds(self._num_replayed + num_tokens)

    def rejection_seconds(self, num_accepted: float) -> float:
        """Returns the extra cost of the next round's pass if this draft is rejected after `num_accepted`."""
        if not self._replays:
            return 0.0
        num_waiting = self._num_replayed + 1 + round(num_accepted)
        return self._costs.optimistic_seconds(num_waiting + 1) - self._costs.optimistic_seconds(1)
