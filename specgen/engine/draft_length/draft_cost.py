"""Learns what a draft token costs, in seconds."""

from __future__ import annotations

from collections import deque
from math import inf

from specgen.engine.draft_length import cost_table
from specgen.engine.draft_length.cost_table import CostTable, trust, typical
from specgen.engine.draft_length.row_cost import RowCost

HALF_LIFE = 16
"""Target passes after which an earlier run's cost of a draft token counts half, if it is not measured again."""

DOUBTFUL = 2.0
"""A cost of a draft token above this many times what an earlier run or the sizes let expect was probably disturbed."""


class DraftCost:
    """Seconds of one draft token, from rounds in which the drafter read little else.

    A value that is too high would prevent drafting, and so its own correction: while nothing is drafted, an earlier
    value shrinks with every pass of the target, and so does a measured one that is much higher than expected. Seen:
    drafts next to another program took 0.4 s a token in three rounds, and would have taken 0.03 s in later answers.

    Args:
        seconds: From an earlier run.
        costs: The target's table: if its passes became slower, the earlier value is scaled in the same way.
        share: An estimate from sizes, as a share of the target's pass over one token; 0: unknown.
    """

    def __init__(self, seconds: float | None = None, costs: CostTable | None = None, share: float = 0.0) -> None:
        self.rows = RowCost()
        """Cost of further tokens in a pass over a tree."""
        self._share = share
        self._samples: deque[float] = deque(maxlen=cost_table.NUM_SAMPLES)
        self._typical = 0.0
        self._earlier = seconds
        self._costs = costs or CostTable()
        self._first_drift, self._first_pass = self._costs.drift, self._costs.num_passes
        self._num_rounds = self._last_pass = 0

    def observe(self, num_tokens: float, seconds: float) -> None:
        """Adds the draft of one round. An earlier run's value, or the estimate, counts as one round."""
        if not self._samples and self._expected_seconds:
            self._samples.append(self._expected_seconds)
        if len(self._samples) > 1 and self._costs.num_passes - self._last_pass >= HALF_LIFE:
            # After a pause, earlier drafts count as one: all of them may have been disturbed.
            earlier = self._typical
            self._samples.clear()
            self._samples.append(earlier)
        self._samples.append(seconds / num_tokens)
        self._typical = typical(self._samples)
        self._num_rounds += 1
        self._last_pass = self._costs.num_passes

    @property
    def is_supported(self) -> bool:
        """Whether a draft token was measured, now or in an earlier run."""
        return bool(self._samples) or self._earlier is not None

    @property
    def is_measured(self) -> bool:
        """Whether this run measured the cost."""
        return self._num_rounds > 0

    @property
    def is_confirmed(self) -> bool:
        """Whether this run measured the cost often enough to save it."""
        return self._num_rounds >= cost_table.NUM_CONFIRMING

    @property
    def seconds(self) -> float:
        """Cost of a token; 0 while unknown, so that drafting gets tried."""
        if len(self._samples) > 1:
            half_life = HALF_LIFE * min(self._num_rounds, cost_table.NUM_SAMPLES)
            faded = self._typical * trust(self._costs.num_passes - self._last_pass, half_life)
            return max(faded, min(self._typical, DOUBTFUL * self._expected_seconds or inf))
        if self._samples:
            single = self._costs.seconds(1)
            seconds = min(self._typical, single) if single else self._typical
            return seconds * trust(self._costs.num_passes - self._last_pass, cost_table.SINGLE_HALF_LIFE)
        # A token that costs more than a pass of the target is not worth drafting: such a value is never corrected.
        expected = min(self._expected_seconds, self._costs.seconds(1) or inf)
        return expected * trust(self._costs.num_passes - self._first_pass, HALF_LIFE)

    @property
    def typical_seconds(self) -> float:
        """Cost of a token by this run's drafts, however long ago; `seconds` if it made none."""
        return self._typical if self.is_measured else self.seconds

    @property
    def _expected_seconds(self) -> float:
        """An earlier run's cost, or an estimate from sizes."""
        if self._earlier is None:
            return self._share * self._costs.seconds(1)
        return self._earlier * self._costs.drift / self._first_drift
