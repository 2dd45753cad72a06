"""Checks the tokens of a GGUF: llama.cpp indexes with them without bounds checks, or ends the process."""

from __future__ import annotations

import re
from collections.abc import Mapping

from specgen.loading.gguf.end_tokens import END_TOKENS, ending_ids
from specgen.loading.gguf.metadata import AbsentId
from specgen.loading.gguf.reader import InconsistentFileError

_BYTE, _BYTE_SIZE = re.compile(rb"<0x[0-9A-F]{2}>"), 6
_NO_IDS = (-1, 2**32 - 1)


class TokenScan:
    """Collects what is known of the tokens, in the order of the file.

    Attributes:
        counts: Entries of each array with one entry per token, by its key.
        named: Keys that name a special token: position after the key, and whether the value's type is signed.
        absent: Special tokens that are named, but that the file does not have.
        notices: Ids that are ignored, one line each.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.named: dict[str, tuple[int, bool]] = {}
        self.absent: list[AbsentId] = []
        self.notices: list[str] = []
        self._spelled: dict[bytes, int] = {}
        self._hashes: set[int] = set()
        self._bytes: set[bytes] = set()
        self._repeated: bytes | None = None

    def add(self, token_id: int, token: bytes) -> None:
        """Looks at the next token."""
        # A set of hashes: a table may hold 64 KiB in each of millions of tokens.
        if (number := hash(token)) in self._hashes:
            self._repeated = token
        self._hashes.add(number)
        if token in END_TOKENS:
            self._spelled[token] = token_id
        elif len(token) == _BYTE_SIZE and _BYTE.fullmatch(token):
            self._bytes.add(token)

    def check(self, pairs: dict[str, object]) -> None:
        """Checks the lengths of the arrays, and takes ids that are not in the table out of the entries.

        Raises:
            InconsistentFileError: Arrays differ in length.
        """
        num_tokens = self.counts.get("tokenizer.ggml.tokens")
        for key, count in self.counts.items():
            if count != num_tokens:
                raise InconsistentFileError(f"{count} entries in {key!r}, but {num_tokens or 0} tokens")
        for key, (key_end, is_signed) in self.named.items():
            value = pairs.get(key)
            if not isinstance(value, int) or (value not in _NO_IDS and (num_tokens is None or 0 <= value < num_tokens)):
                continue
            del pairs[key]
            self.absent.append(AbsentId(key, key_end, is_signed))
            if value not in _NO_IDS:
                self.notices.append(f"{key} is {value}, but there are {num_tokens} tokens: it is ignored")

    def end_ids(self, pairs: Mapping[str, object]) -> tuple[int, ...]:
        """Returns the tokens that end a text, after `check`: those of the keys, and those that spell an end of turn."""
        named = [pairs.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
        return tuple(dict.fromkeys([*(one for one in named if isinstance(one, int)), *ending_ids(self._spelled)]))

    def obstacle(self, tokenizer_model: str | None) -> str | None:
        """Returns why llama.cpp would end the process because of the tokens; None if it would not."""
        if self._repeated is not None:
            return f"tokenizer.ggml.tokens has {self._repeated[:40].decode('utf-8', 'replace')!r} twice"
        if tokenizer_model == "llama" and len(self._bytes) < 256:
            return f"tokenizer.ggml.tokens has {len(self._bytes)} of the 256 tokens of bytes"
        return None
