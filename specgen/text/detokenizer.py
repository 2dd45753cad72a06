"""Decodes tokens to text one at a time; holds incomplete characters back, and previews rejected tokens in context."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class Detokenizer:
    """Decodes one text incrementally.

    `tokenizers.DecodeStream` buffers a character until its bytes are complete. It doesn't expose its buffer, and it
    fails on some invalid byte sequences: this class adds `flush`, and starts a new stream after a failure.

    Args:
        tokenizer: The fast tokenizer inside a transformers one (`tokenizer.backend_tokenizer`).
        context_ids: Last tokens before the text, for raw completion: they decide about leading spaces.
        skip_special_tokens: Omit special tokens from the text.
    """

    def __init__(
        self, tokenizer: Tokenizer, context_ids: Sequence[int] = (), *, skip_special_tokens: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._skips_special = skip_special_tokens
        # The stream buffers text that ends in U+FFFD: with such a context, it would repeat it in the answer.
        self._context = [] if self._decode(context_ids).endswith("\ufffd") else list(context_ids)
        self._pending: list[int] = []
        self._stream = self._new_stream(self._context)

    @property
    def hidden_tokens(self) -> dict[int, str]:
        """The tokens that the text omits: their strings by id."""
        if not self._skips_special:
            return {}
        added = self._tokenizer.get_added_tokens_decoder().items()
        return {token_id: token.content for token_id, token in added if token.special}

    def commit(self, token_id: int) -> str:
        """Adds a token; returns the text it completes, `""` while a character is incomplete."""
        self._pending.append(token_id)
        text = self._step(self._stream, token_id)
        if text is None:
            return self._restart()
        if text:
            self._context = self._pending
            self._pending = []
        return text

    def peek(self, token_ids: Sequence[int]) -> list[str]:
        """Returns the text that each of the next tokens would add; changes nothing."""
        stream = copy.copy(self._stream)
        return [self._step(stream, token_id) or "" for token_id in token_ids]

    def flush(self) -> str:
        """Returns the buffered text; an incomplete character becomes U+FFFD."""
        if not self._pending:
            return ""
        text = self._decode([*self._context, *self._pending])
        context = self._decode(self._context)
        self._context, self._pending = self._pending, []
        return text[len(context) :] if text.startswith(context) else ""

    def fork(self) -> Detokenizer:
        """Returns an independent copy with the same state."""
        other = copy.copy(self)
        other._stream = copy.copy(self._stream)
        other._context, other._pending = list(self._context), list(self._pending)
        return other

    def _restart(self) -> str:
        """Continues with a new stream if the next bytes would change text that was returned already.

        The recursion ends: the old stream had returned text, so fewer tokens are pending than it had consumed.
        """
        pending, self._context, self._pending = self._pending, [], []
        self._stream = self._new_stream([])
        return "".join(self.commit(token_id) for token_id in pending)

    def _new_stream(self, ids: Sequence[int]) -> DecodeStream:
        return DecodeStream(ids=list(ids) or None, skip_special_tokens=self._skips_special)

    def _step(self, stream: DecodeStream, token_id: int) -> str | None:
        """Returns `""` while bytes are incomplete, and None if the stream can't continue."""
        try:
            return stream.step(self._tokenizer, token_id) or ""
        except Exception as error:
            # The bindings raise a bare Exception for it (tokenizers#1705).
            if "Invalid prefix" not in str(error):
                raise
            return None

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=self._skips_special)
