"""Adds text to the events of a generation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from specgen.core.events import Event, FinalText, Finish, Piece, Round, RoundText, TextEvent, TokenState
from specgen.text.detokenizer import Detokenizer
from specgen.text.stop_strings import StopHold


def with_text(events: Iterable[Event], detokenizer: Detokenizer, stops: Sequence[str] = ()) -> Iterator[TextEvent]:
    """Add text to the events of a generation.

    The texts of all kept pieces and of the final event, joined, are the answer.
    """
    hold = StopHold(stops)
    for event in events:
        if isinstance(event, Round):
            yield RoundText(event, tuple(_pieces(event, detokenizer, hold)))
        elif isinstance(event, Finish):
            yield FinalText(hold.feed(detokenizer.flush()) + hold.release(), event)
        else:
            yield event


def _pieces(round_: Round, detokenizer: Detokenizer, hold: StopHold) -> Iterator[Piece]:
    kept, refused = round_.draft_ids[: round_.num_accepted], round_.draft_ids[round_.num_accepted :]
    for token_id in kept:
        yield Piece(token_id, hold.feed(detokenizer.commit(token_id)), TokenState.ACCEPTED)
    for position, (token_id, text) in enumerate(zip(refused, detokenizer.peek(refused), strict=True)):
        yield Piece(token_id, text, TokenState.DISCARDED if position else TokenState.REJECTED)
    if round_.target_id is not None:
        yield Piece(round_.target_id, hold.feed(detokenizer.commit(round_.target_id)), _target_state(round_))


def _target_state(round_: Round) -> TokenState:
    if not round_.draft_ids:
        return TokenState.TARGET
    return TokenState.CORRECTION if round_.num_rejected else TokenState.BONUS
