"""Adds text to the events of a generation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from specgen.core.events import Event, FinalText, Finish, Piece, Round, RoundText, TextEvent, TokenState
from specgen.text.detokenizer import Detokenizer
from specgen.text.stop_strings import StopBuffer


def with_text(events: Iterable[Event], detokenizer: Detokenizer, stops: Sequence[str] = ()) -> Iterator[TextEvent]:
    """Adds text to the events of a generation.

    The texts of all kept pieces and of the final event, joined, are the answer.
    """
    buffer = StopBuffer(stops)
    for event in events:
        if isinstance(event, Round):
            yield RoundText(event, tuple(_pieces(event, detokenizer, buffer)))
        elif isinstance(event, Finish):
            yield FinalText(buffer.feed(detokenizer.flush()) + buffer.flush(), event)
        else:
            yield event


def _pieces(round_: Round, detokenizer: Detokenizer, buffer: StopBuffer) -> Iterator[Piece]:
    accepted, rejected = round_.draft_ids[: round_.num_accepted], round_.draft_ids[round_.num_accepted :]
    for token_id in accepted:
        yield Piece(token_id, buffer.feed(detokenizer.commit(token_id)), TokenState.ACCEPTED)
    for position, (token_id, text) in enumerate(zip(rejected, detokenizer.peek(rejected), strict=True)):
        yield Piece(token_id, text, TokenState.DISCARDED if position else TokenState.REJECTED)
    if round_.target_id is not None:
        yield Piece(round_.target_id, buffer.feed(detokenizer.commit(round_.target_id)), _target_state(round_))


def _target_state(round_: Round) -> TokenState:
    if not round_.draft_ids:
        return TokenState.TARGET
    return TokenState.CORRECTION if round_.num_rejected else TokenState.BONUS
