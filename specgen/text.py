"""Token ids in, text out, a round at a time: never half a character or a stop string; rejected tokens in context."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from specgen.events import Event, FinalText, Finish, Piece, Round, RoundText, TextEvent, TokenState


class Detokenizer:
    """Incremental decoding of one text.

    `tokenizers.DecodeStream` holds a character back until its bytes are complete. It can't say what it holds, and it
    gives up on some invalid byte sequences; this class adds the flush and starts a fresh stream in that case.

    Args:
        tokenizer: The fast tokenizer behind a transformers one (`tokenizer.backend_tokenizer`).
        context_ids: Last tokens before the text, for raw completion: they decide about leading spaces.
        skip_special_tokens: Leave special tokens out of the text.
    """

    def __init__(
        self, tokenizer: Tokenizer, context_ids: Sequence[int] = (), *, skip_special_tokens: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._skips_special = skip_special_tokens
        # The stream holds back text that ends in U+FFFD: given such a context, it would repeat it in the answer.
        self._context = [] if self._decode(context_ids).endswith("\ufffd") else list(context_ids)
        self._pending: list[int] = []
        self._stream = self._new_stream(self._context)

    def commit(self, token_id: int) -> str:
        """Add a token; returns the text it completes, `""` while a character is incomplete."""
        self._pending.append(token_id)
        text = self._step(self._stream, token_id)
        if text is None:
            return self._restart()
        if text:
            self._context = self._pending
            self._pending = []
        return text

    def peek(self, token_ids: Sequence[int]) -> list[str]:
        """Text each of the tokens would add if it came next; nothing is kept."""
        stream = copy.copy(self._stream)
        return [self._step(stream, token_id) or "" for token_id in token_ids]

    def flush(self) -> str:
        """The text still held back: an incomplete character becomes U+FFFD."""
        if not self._pending:
            return ""
        whole = self._decode([*self._context, *self._pending])
        before = self._decode(self._context)
        self._context, self._pending = self._pending, []
        return whole[len(before) :] if whole.startswith(before) else ""

    def fork(self) -> Detokenizer:
        """An independent copy at the same place."""
        other = copy.copy(self)
        other._stream = copy.copy(self._stream)
        other._context, other._pending = list(self._context), list(self._pending)
        return other

    def _restart(self) -> str:
        """Go on with a fresh stream where the next bytes would change text already given out.

        It ends: the old stream had given out text, so fewer tokens are left than it was fed.
        """
        pending, self._context, self._pending = self._pending, [], []
        self._stream = self._new_stream([])
        return "".join(self.commit(token_id) for token_id in pending)

    def _new_stream(self, ids: Sequence[int]) -> DecodeStream:
        return DecodeStream(ids=list(ids) or None, skip_special_tokens=self._skips_special)

    def _step(self, stream: DecodeStream, token_id: int) -> str | None:
        """`""` while bytes are incomplete, None where the stream can't go on."""
        try:
            return stream.step(self._tokenizer, token_id) or ""
        except Exception as error:
            # The bindings raise a bare Exception for it (tokenizers#1705).
            if "Invalid prefix" not in str(error):
                raise
            return None

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=self._skips_special)


class StopHold:
    """Lets text through up to the first stop string; holds back what may be the beginning of one.

    Args:
        stops: Stop strings, none of them empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.matched: str | None = None
        """The stop string that was met."""

    def feed(self, text: str) -> str:
        """Add text; returns what may be shown. After a match that is nothing."""
        if self.matched is not None or not self._stops:
            return "" if self.matched is not None else text
        whole = self._held + text
        found = [(whole.find(stop), -len(stop), stop) for stop in self._stops if stop in whole]
        if found:
            position, _, self.matched = min(found)
            self._held = ""
            return whole[:position]
        num_held = max(_overlap(whole, stop) for stop in self._stops)
        self._held = whole[len(whole) - num_held :]
        return whole[: len(whole) - num_held]

    def release(self) -> str:
        """The text held back, when the answer ends without a match."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


class StopStrings:
    """The engine's stop check: finds the token that completes a stop string.

    Args:
        detokenizer: At the place where the answer begins; this object uses it up.
        stops: Stop strings.
    """

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str]) -> None:
        self._detokenizer = detokenizer
        self._hold = StopHold(stops)

    def cut(self, ids: Sequence[int]) -> int | None:
        """How many of the next ids to keep, the one that completes a stop string included; None for all."""
        for position, token_id in enumerate(ids):
            self._hold.feed(self._detokenizer.commit(token_id))
            if self._hold.matched is not None:
                return position + 1
        return None

    @property
    def matched(self) -> str | None:
        """The stop text that was met; None before."""
        return self._hold.matched


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
