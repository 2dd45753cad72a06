"""Measures the baseline of a chat: the target alone, timed once, and again when the drafter changes."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from rich.text import Text

from specgen.cli.chat.state import ChatState
from specgen.render.diagnosis import find_doubt

if TYPE_CHECKING:
    from specgen.core.results import RunReport
    from specgen.runtime.generation import Generation


def measure_baseline(state: ChatState, generation: Generation) -> bool:
    """Times the target alone after a reply; returns whether that succeeded. Ctrl-C ends it early."""
    signals = state.terminal.signals
    signals.listener = generation.interrupt
    try:
        return state.conversation.calibrate(generation) is not None
    finally:
        signals.listener = None
        if signals.signum == signal.SIGINT:
            signals.signum = None


def update_baseline(state: ChatState, generation: Generation) -> Text | None:
    """Measures the baseline if it is missing or doubtful; returns a note about it."""
    is_first = state.conversation.baseline is None
    is_due = state.display.calibrate and (is_first or state.is_baseline_doubtful)
    if not is_due or not measure_baseline(state, generation):
        return None
    again = "" if is_first else " again"
    return Text(f"(measured the baseline{again} on 8 tokens, for the speedup)", style="muted")


def refresh_baseline(state: ChatState) -> bool:
    """Measures the baseline again if the drafter has changed; returns whether that was done."""
    if state.last_generation is None or not state.is_baseline_stale or not state.display.calibrate:
        return False
    state.is_baseline_stale = not measure_baseline(state, state.last_generation)
    return not state.is_baseline_stale


def is_doubtful(report: RunReport) -> bool:
    """Whether the speedup of a reply with drafts is implausible."""
    return report.counts.num_drafted > 0 and find_doubt(report) is not None
