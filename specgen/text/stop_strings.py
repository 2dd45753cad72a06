"""Adds text to the events of a generation, and finds stop strings in the growing text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from specgen.core.draft_tree import DraftTree, path_to
from specgen.core.events import Event, FinalText, Finish, Piece, Round, RoundText, TextEvent, TokenState
from specgen.text.detokenizer import Detokenizer


class StopBuffer:
    """Passes text on up to the first stop string, and buffers what may be the start of one.

    Special tokens are not part of the text, but a stop string may contain their strings (`<|im_end|>`). Such a token
    is a mark in the buffer: a lone surrogate, which no decoded text contains. A stop string is also searched with its
    special tokens as marks, so it ends the answer whether the model writes the tokens or their letters.

    Args:
        stops: Stop strings, none of them empty.
        hidden: Strings of the tokens that the text omits, by id.
    """

    def __init__(self, stops: Sequence[str], hidden: Mapping[int, str] | None = None) -> None:
        self._marks = _marks(stops, hidden or {})
        self._stops = {form: stop for stop in stops for form in (_marked(stop, self._marks), stop)}
        self._buffer = ""
        self.matched: str | None = None
        """The stop string that was found."""

    def feed(self, text: str, token_id: int | None = None) -> str:
        """Adds text, and the token that completed it; returns what can be shown: nothing after a match."""
        if self.matched is not None or not self._stops:
            return "" if self.matched is not None else text
        _, mark = self._marks.get(token_id, ("", "")) if token_id is not None else ("", "")
        text = self._buffer + text + mark
        matches = [(text.find(stop), -len(stop), stop) for stop in self._stops if stop in text]
        if matches:
            position, _, found = min(matches)
            self.matched = self._stops[found]
            self._buffer = ""
            return self._visible(text[:position])
        num_buffered = max(_overlap(text, stop) for stop in self._stops)
        self._buffer = text[len(text) - num_buffered :]
        return self._visible(text[: len(text) - num_buffered])

    def flush(self) -> str:
        """Returns the buffered text when the answer ends without a match."""
        text, self._buffer = self._buffer, ""
        return self._visible(text)

    def _visible(self, text: str) -> str:
        for _, mark in self._marks.values():
            text = text.replace(mark, "")
        return text


def _marks(stops: Sequence[str], hidden: Mapping[int, str]) -> dict[int, tuple[str, str]]:
    """Returns the string and the mark of each hidden token that is part of a stop string, by id."""
    used = [(token_id, string) for token_id, string in hidden.items() if any(string in stop for stop in stops)]
    # There are 2048 surrogates; no command line names as many special tokens.
    return {token_id: (string, chr(0xD800 + index)) for index, (token_id, string) in enumerate(used[:2048])}


def _marked(stop: str, marks: Mapping[int, tuple[str, str]]) -> str:
    for string, mark in sorted(marks.values(), key=lambda pair: len(pair[0]), reverse=True):
        stop = stop.replace(string, mark)
    return stop


def _overlap(text: str, stop: str) -> int:
    """Returns the length of the longest end of `text` that is a proper prefix of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


class StopStrings:
    """The engine's stop check: finds the token that completes a stop string.

    Args:
        detokenizer: A detokenizer at the start of the answer; this object advances it.
        stops: Stop strings.
    """

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str]) -> None:
        self._detokenizer = detokenizer
        self._buffer = StopBuffer(stops, detokenizer.hidden_tokens)

    def cut(self, ids: Sequence[int]) -> int | None:
        """Returns how many of the next ids to keep, up to and with the one that completes a stop; None: all."""
        for position, token_id in enumerate(ids):
            self._buffer.feed(self._detokenizer.commit(token_id), token_id)
            if self._buffer.matched is not None:
                return position + 1
        return None

    @property
    def matched(self) -> str | None:
        """The stop string that was found."""
        return self._buffer.matched


def with_text(events: Iterable[Event], detokenizer: Detokenizer, stops: Sequence[str] = ()) -> Iterator[TextEvent]:
    """Adds text to the events of a generation.

    The texts of all kept pieces and of the final event, joined, are the answer.
    """
    buffer = StopBuffer(stops, detokenizer.hidden_tokens if stops else {})
    for event in events:
        if isinstance(event, Round):
            texts = () if event.tree is None else _tree_texts(event.tree, detokenizer)
            yield RoundText(event, tuple(_pieces(event, detokenizer, buffer)), texts)
        elif isinstance(event, Finish):
            yield FinalText(buffer.feed(detokenizer.flush()) + buffer.flush(), event)
        else:
            yield event


def _tree_texts(tree: DraftTree, detokenizer: Detokenizer) -> tuple[str, ...]:
    """Returns the text that each token of a tree would add after the text so far and the tokens on its path."""
    texts = [""] * len(tree)
    for leaf in set(range(len(tree))) - set(tree.parents):
        path = path_to(tree.parents, leaf)
        for index, text in zip(path, detokenizer.peek([tree.ids[index] for index in path]), strict=True):
            texts[index] = text
    return tuple(texts)


def _pieces(round_: Round, detokenizer: Detokenizer, buffer: StopBuffer) -> Iterator[Piece]:
    accepted, rejected = round_.draft_ids[: round_.num_accepted], round_.draft_ids[round_.num_accepted :]
    for token_id in accepted:
        yield Piece(token_id, buffer.feed(detokenizer.commit(token_id), token_id), TokenState.ACCEPTED)
    for position, (token_id, text) in enumerate(zip(rejected, detokenizer.peek(rejected), strict=True)):
        yield Piece(token_id, text, TokenState.DISCARDED if position else TokenState.REJECTED)
    if round_.target_id is not None:
        own = TokenState.BONUS if round_.draft_ids else TokenState.TARGET
        state = TokenState.CORRECTION if round_.num_rejected else own
        text = buffer.feed(detokenizer.commit(round_.target_id), round_.target_id)
        yield Piece(round_.target_id, text, state)
