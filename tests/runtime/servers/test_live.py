"""Rounds found while an answer streams."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from specgen.core.events import TokenState
from specgen.runtime.servers.live import LiveRounds
from tests.runtime.servers.fake import LLAMA_STREAM

Round = tuple[int, int]


def counters(rounds: list[Round]) -> list[tuple[int, int, int]]:
    """Returns what llama-server sends: tokens, drafted and accepted so far; the first token comes from the prompt."""
    sent, drafted, accepted = [(1, 0, 0)], 0, 0
    for num_drafted, num_accepted in rounds:
        drafted, accepted = drafted + num_drafted, accepted + num_accepted
        sent += [(sent[-1][0] + 1 + i, drafted, accepted) for i in range(num_accepted + 1)]
    return sent


ROUNDS = st.lists(
    st.integers(0, 4).flatmap(lambda drafted: st.tuples(st.just(drafted), st.integers(0, drafted))), max_size=12
)


@given(rounds=ROUNDS)
def test_rounds_are_found_again(rounds: list[Round]) -> None:
    live = LiveRounds()

    states = [live.observe(*sent) for sent in counters(rounds)]

    expected = [TokenState.TARGET]
    for drafted, accepted in rounds:
        own = TokenState.TARGET if not drafted else TokenState.BONUS if accepted == drafted else TokenState.CORRECTION
        expected += [TokenState.ACCEPTED] * accepted + [own]
    assert live.fits
    assert states == expected
    assert live.steps == [one for one in rounds if one[0]]


@given(rounds=ROUNDS, wrong=st.integers(1, 5), data=st.data())
def test_counters_that_do_not_fit_end_all_marks(rounds: list[Round], wrong: int, data: st.DataObject) -> None:
    sent = counters([*rounds, (2, 1)])
    at = data.draw(st.integers(1, len(sent) - 1))
    tokens, drafted, _ = sent[at]
    sent[at] = (tokens, drafted, drafted + wrong)
    live = LiveRounds()

    states = [live.observe(*one) for one in sent]

    assert not live.fits
    assert states[at:] == [None] * (len(sent) - at)


def test_a_piece_that_ends_a_round_and_begins_the_next_is_understood() -> None:
    live = LiveRounds()
    sent = counters([(3, 3), (2, 1)])
    # The fourth and fifth token together are half of a character each, so they come with the first of the next round.
    kept = [*sent[:4], *sent[5:]]

    states = [live.observe(*one) for one in kept]

    assert states[-2:] == [TokenState.ACCEPTED, TokenState.CORRECTION]
    assert live.steps == [(3, 3), (2, 1)]


def test_a_server_that_says_nothing_gets_no_marks() -> None:
    live = LiveRounds()

    assert live.observe(1, None, None) is None
    assert not live.fits


def test_the_rounds_of_a_recorded_answer_sum_to_its_counts() -> None:
    live = LiveRounds()
    for line in LLAMA_STREAM.read_text().splitlines():
        if line.startswith("data: {"):
            event = json.loads(line[6:])
            if event["choices"] and event["choices"][0]["delta"].get("content"):
                timings = event["timings"]
                live.observe(timings["predicted_n"], timings.get("draft_n", 0), timings.get("draft_n_accepted", 0))

    assert live.fits
    assert live.steps == [(3, 3), (3, 3), (3, 0), (3, 3), (3, 3), (3, 3), (1, 1)]
