"""Drafting ahead is chosen where it takes less time per drafted token, by an injected clock."""

from __future__ import annotations

import pytest

from specgen.engine.drafters.ahead import NUM_TRIALS, AheadChoice, AheadTiming


def chosen(step: float, wait: float, num_kept: int, *, ends_early: bool) -> bool:
    """Returns what is chosen on a device whose steps and waits for the host take so long."""
    choice = AheadChoice()
    tried = []
    for _ in range(2 * NUM_TRIALS):
        is_ahead = choice.is_ahead
        tried.append(is_ahead)
        seconds = num_kept * step if is_ahead else num_kept * (step + wait)
        choice.observe(AheadTiming(seconds, num_kept, num_kept + (is_ahead and ends_early), is_ahead))
    assert sorted(tried) == [False] * NUM_TRIALS + [True] * NUM_TRIALS
    return choice.is_ahead


@pytest.mark.parametrize(
    ("step", "wait", "num_kept", "ends_early", "expected"),
    [
        (1.0, 0.5, 4, False, True),  # waiting costs 2 steps of 4, nothing is wasted
        (1.0, 0.5, 4, True, True),  # 2 against 1
        (1.0, 0.1, 4, True, False),  # 0.4 against 1
        (1.0, 0.5, 1, True, False),  # 0.5 against 1
        (0.2, 0.5, 1, True, True),  # 0.5 against 0.2
    ],
)
def test_the_cheaper_way_is_chosen(step: float, wait: float, num_kept: int, ends_early: bool, expected: bool) -> None:
    assert chosen(step, wait, num_kept, ends_early=ends_early) is expected


def test_one_slow_draft_does_not_decide() -> None:
    choice = AheadChoice()
    for number in range(2 * NUM_TRIALS):
        is_ahead = choice.is_ahead
        seconds = 100.0 if number == 1 else 1.0 if is_ahead else 1.5
        choice.observe(AheadTiming(seconds, 1, 1, is_ahead))

    assert choice.is_ahead
