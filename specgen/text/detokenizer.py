"""Token ids in, text out, a round at a time: never half a character or a stop string; rejected tokens in context."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


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
