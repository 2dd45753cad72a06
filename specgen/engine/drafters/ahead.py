"""Decides by measurement whether a draft model drafts ahead: computes the next token before the policy wants it."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

NUM_TRIALS = 4
"""Drafts that are timed in each way before one of them is chosen."""


@dataclass(frozen=True, slots=True)
class AheadTiming:
    """Holds the time of one draft.

    Args:
        seconds: Time until its last confidence was read.
        num_kept: Its tokens, at least one.
        num_started: Its tokens and those that the policy did not want.
        is_ahead: Whether it was made ahead.
    """

    seconds: float
    num_kept: int
    num_started: int
    is_ahead: bool


class AheadChoice:
    """Chooses between drafting a token after the host has read the last one's confidence, and drafting while it waits.

    Drafting ahead saves the time in which the device waits for the host, at each token. It wastes a step of the draft
    where the policy ends a draft early. That step still runs when the draft has been read, so it isn't in the time of
    the draft: it is added at the price of the others.
    """

    def __init__(self) -> None:
        self._seconds: dict[bool, list[float]] = {False: [], True: []}
        """Measured seconds per drafted token, by whether they were drafted ahead."""

    @property
    def is_ahead(self) -> bool:
        """Whether the next draft is made ahead: both ways in turn, then the one whose median was lower."""
        waiting, ahead = self._seconds[False], self._seconds[True]
        if len(ahead) < NUM_TRIALS:
            return len(ahead) < len(waiting)
        return median(ahead) < median(waiting)

    def observe(self, timing: AheadTiming) -> None:
        """Adds a draft that recorded nothing."""
        times = self._seconds[timing.is_ahead]
        if len(times) < NUM_TRIALS:
            times.append(timing.seconds * timing.num_started / timing.num_kept**2)
