"""Defines the settings of a chat's replies."""

from __future__ import annotations

from dataclasses import dataclass

from specgen.core.settings import DraftSchedule, SamplingSettings


@dataclass(frozen=True, slots=True)
class ReplySettings:
    """How replies are generated.

    Args:
        sampling: The seed of each reply is this seed plus the number of replies before it, so a retry differs.
        sampling_source: See `Request`.
        max_new_tokens: Longest reply; the window may end it earlier.
        num_draft_tokens: Longest draft.
        schedule: `constant`, or `auto`: lengths chosen by measured cost.
        stops: Stop strings.
        strict: A failing drafter is an error, not a warning.
    """

    sampling: SamplingSettings
    sampling_source: str = "default"
    max_new_tokens: int = 1024
    num_draft_tokens: int = 5
    schedule: DraftSchedule = "constant"
    stops: tuple[str, ...] = ()
    strict: bool = False
