"""Gives the bytes that each token of a tokenizer stands for, so that tokens of different tokenizers can be compared.

The printable strings of a vocabulary can't be compared: `Ġthe`, `▁the` and ` the` are one token in three spellings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
CONTEXT_TOKENS = 8
"""Tokens before a text that are encoded with it: they decide about its first tokens."""


def _byte_characters() -> dict[str, int]:
    """Returns the byte of each printable character in a byte-level vocabulary, as GPT-2 assigns them."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTES = _byte_characters()


class TokenTable:
    """The tokens of a tokenizer as bytes.

    Args:
        tokenizer: A `Tokenizer`, or a transformers one with a `backend_tokenizer`.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._backend = tokenizer.backend_tokenizer
        vocabulary: dict[str, int] = self._backend.get_vocab(with_added_tokens=True)
        self.special = {
            token_id: token.content
            for token_id, token in self._backend.get_added_tokens_decoder().items()
            if token.special
        }
        """The contents of control tokens, by id."""
        read = _token_reader(self._backend)
        self.num_tokens = max(vocabulary.values(), default=-1) + 1
        self._strings = {token_id: token for token, token_id in vocabulary.items()}
        self.bytes = [b""] * self.num_tokens
        """What each token stands for; `b""` for an id without a token."""
        for token, token_id in vocabulary.items():
            self.bytes[token_id] = token.encode() if token_id in self.special else read(token, token_id)
        eos, bos = tokenizer.eos_token_id, self._backend.encode("", add_special_tokens=True).ids
        self.end_id: int | None = None if eos is None else int(eos)
        self.start_ids = [token_id for token_id in bos if token_id != self.end_id and token_id in self.special]
        """What the tokenizer puts in front of a text."""

    @cached_property
    def by_bytes(self) -> dict[bytes, int]:
        """The ids of ordinary tokens. If several stand for the same bytes, a byte token counts least."""
        found: dict[bytes, int] = {}
        for token_id, text in enumerate(self.bytes):
            if text and token_id not in self.special and (text not in found or self._is_byte_token(found[text])):
                found[text] = token_id
        return found

    @cached_property
    def special_ids(self) -> dict[str, int]:
        """The ids of control tokens, by content."""
        return {content: token_id for token_id, content in self.special.items()}

    def _is_byte_token(self, token_id: int) -> bool:
        return BYTE_TOKEN.fullmatch(self._strings[token_id]) is not None

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.by_bytes), default=0)

    def extend(self, ids: Sequence[int], data: bytes) -> list[int]:
        """Encodes bytes that follow a text, so that its tokens stay as they are.

        The last tokens of the text are encoded together with the bytes. If the tokenizer would put a token across
        the border, or changes characters, the bytes are cut into the longest tokens instead.

        Args:
            ids: The text before; may be empty.
            data: Any bytes. Those that no token contains are left out.
        """
        context = self._context(ids)
        before = b"".join(self.bytes[token_id] for token_id in context)
        whole = before + data
        start = len(whole) - len(whole.lstrip(bytes(range(0x80, 0xC0)))) if before else 0
        end = len(whole) - num_incomplete(whole)
        if start > len(before) or end <= len(before):
            return self._longest_tokens(data)
        try:
            encoded = self._backend.encode(whole[start:end].decode(), add_special_tokens=False).ids
        except UnicodeDecodeError:
            return self._longest_tokens(data)
        sizes = [len(self.bytes[token_id]) for token_id in encoded]
        # A tokenizer with word marks may put one in front of every text.
        num_added = sum(sizes) - (end - start)
        rest = self._longest_tokens(whole[end:])
        if num_added in (0, 1) and start == len(before):
            return [*encoded, *rest]
        position = start - num_added
        for index, size in enumerate(sizes):
            if position == len(before):
                # An added token may take a space in front of it, as long as a mark that was put in front of the text.
                is_same = b"".join(self.bytes[token_id] for token_id in encoded[index:]) == whole[position:end]
                return [*encoded[index:], *rest] if is_same else self._longest_tokens(data)
            position += size
        return self._longest_tokens(data)

    def _context(self, ids: Sequence[int]) -> Sequence[int]:
        """Returns the last tokens of a text, from the last control token on."""
        tail = ids[-CONTEXT_TOKENS:]
        last = max((index for index, token_id in enumerate(tail) if token_id in self.special), default=-1)
        return tail[last + 1 :]

    def _longest_tokens(self, data: bytes) -> list[int]:
        found = []
        start = 0
        while start < len(data):
            ends = range(min(len(data), start + self._longest), start, -1)
            end = next((end for end in ends if data[start:end] in self.by_bytes), None)
            if end is not None:
                found.append(self.by_bytes[data[start:end]])
            start = end or start + 1
        return found


@lru_cache(maxsize=1)
def cached_table(tokenizer: Any) -> TokenTable:
    """Returns the table of a target: `specgen drafts` compares many drafts with it; 150,000 tokens take 0.5 s."""
    return TokenTable(tokenizer)


def num_incomplete(data: bytes) -> int:
    """Returns how many bytes at the end belong to a character that is not complete."""
    for size in range(1, min(4, len(data) + 1)):
        first = data[-size]
        if first >= 0xC0:
            length = 2 if first < 0xE0 else 3 if first < 0xF0 else 4
            return size if size < length else 0
        if first < 0x80:
            return 0
    return 0


def _token_reader(backend: Any) -> Callable[[str, int], bytes]:
    """Returns what turns a token's string and id into bytes, as the decoder does in the middle of a text."""
    state = {} if backend.decoder is None else json.loads(backend.decoder.__getstate__())
    steps = state.get("decoders", [state])
    kinds = {step.get("type") for step in steps}
    if kinds == {"ByteLevel"}:
        return lambda token, _: _byte_level(token)
    is_plain = all(step.get("type") != "Replace" or "String" in step["pattern"] for step in steps)
    if is_plain and kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        replaced = [
            (step["pattern"]["String"], step["content"]) if step["type"] == "Replace" else (step["replacement"], " ")
            for step in steps
            if step["type"] in ("Replace", "Metaspace")
        ]
        return lambda token, _: _with_marks(token, replaced, has_byte_tokens="ByteFallback" in kinds)
    return lambda _, token_id: _difference(backend, token_id)


def _byte_level(token: str) -> bytes:
    values = [_BYTES.get(character) for character in token]
    return token.encode() if None in values else bytes(value for value in values if value is not None)


def _with_marks(token: str, replaced: Sequence[tuple[str, str]], *, has_byte_tokens: bool) -> bytes:
    if has_byte_tokens and (match := BYTE_TOKEN.fullmatch(token)):
        return bytes([int(match[1], 16)])
    for mark, text in replaced:
        token = token.replace(mark, text)
    return token.encode()


def _difference(backend: Any, token_id: int) -> bytes:
    """Returns what a token adds after another one; for decoders that are not known."""
    whole: str = backend.decode([token_id, token_id], skip_special_tokens=False)
    once: str = backend.decode([token_id], skip_special_tokens=False)
    return whole.removeprefix(once).encode()
