"""Reads a target's text in a draft's tokens, and what the draft writes in the target's, by way of bytes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import groupby

from specgen.core.comparison import first_difference
from specgen.text.token_table import TokenTable, num_incomplete

NUM_REREAD = 6
"""Draft tokens at the end of a text that are encoded again when it grows: further text may merge with them."""


def shared_ids(target: TokenTable, draft: TokenTable) -> list[tuple[int, int]]:
    """Returns the ids of tokens that mean the same in both tables, `(target id, draft id)`, ascending.

    Ordinary tokens are compared by their bytes, control tokens by their content, and end tokens by their role.
    """
    ordinary = ((id_, draft.by_bytes[text]) for text, id_ in target.by_bytes.items() if text in draft.by_bytes)
    contents = target.special_ids.items()
    control = ((id_, draft.special_ids[content]) for content, id_ in contents if content in draft.special_ids)
    pairs = dict([*ordinary, *control])
    if target.end_id is not None and draft.end_id is not None and draft.end_id not in pairs.values():
        pairs.setdefault(target.end_id, draft.end_id)
    return sorted(pairs.items())


class Translation:
    """Translates between the tokens of a target and of a draft, for one text that grows and shrinks.

    The target's text is read as the draft's own tokenizer would encode it, so its tokens do not end where the target's
    do. Only the end of the text is encoded again when it has changed.

    Args:
        target: The target's tokens.
        draft: The draft's tokens.
    """

    def __init__(self, target: TokenTable, draft: TokenTable) -> None:
        self._target, self._draft = target, draft
        is_own = bool(draft.start_ids)
        self._unread = {id_ for id_ in target.start_ids if is_own or target.special[id_] not in draft.special_ids}
        """What the target's tokenizer puts in front of a text, where the draft's has something else."""
        self._control = {
            id_: draft.special_ids[content]
            for id_, content in target.special.items()
            if content in draft.special_ids and id_ not in self._unread
        }
        self._written = {draft_id: id_ for id_, draft_id in shared_ids(target, draft)}
        self._ids: list[int] = []
        self._ends: list[int] = []
        """Number of bytes up to the end of each of the target's tokens."""
        self._read: list[int] = list(draft.start_ids)
        self._read_ends = [0] * len(self._read)

    def draft_ids(self, ids: Sequence[int]) -> list[int]:
        """Returns a text in the draft's tokens.

        Args:
            ids: The text in the target's tokens.
        """
        same = first_difference(self._ids, ids)
        if same is not None:
            del self._ids[same:], self._ends[same:]
            self._reread(ids)
        return list(self._read) or [self._draft.end_id or 0]

    def target_ids(self, ids: Sequence[int], written: Sequence[int]) -> tuple[list[int], bool]:
        """Returns what a draft wrote after a text in the target's tokens, without a character that is not complete.

        Args:
            ids: The text in the target's tokens.
            written: The draft's tokens after it.

        Returns:
            The target's tokens, and whether the draft has ended the text: tokens after it have no meaning.
        """
        control = next((index for index, id_ in enumerate(written) if id_ in self._draft.special), None)
        data = b"".join(self._draft.bytes[id_] for id_ in written[:control])
        if control is None:
            return self._target.extend(ids, data[: len(data) - num_incomplete(data)]), False
        found = self._target.extend(ids, data)
        last = self._written.get(written[control])
        return found if last is None else [*found, last], True

    def _reread(self, ids: Sequence[int]) -> None:
        """Brings the draft's tokens up to a text that starts with the tokens known so far."""
        same = len(self._ids)
        position = self._ends[-1] if self._ends else 0
        num_inside, num_start = bisect_right(self._read_ends, position), len(self._draft.start_ids)
        kept = max(num_start, num_inside - NUM_REREAD)
        kept = max((i + 1 for i in range(kept, num_inside) if self._read[i] in self._draft.special), default=kept)
        del self._read[kept:], self._read_ends[kept:]
        position = self._read_ends[-1] if self._read_ends else 0
        first = bisect_right(self._ends, position)
        skipped = position - (self._ends[first - 1] if first else 0)
        for is_control, group in groupby(ids[first:], lambda id_: id_ in self._control):
            members = list(group)
            if is_control:
                for id_ in members:
                    position += len(self._bytes_of(id_))
                    self._append(self._control[id_], position)
                continue
            data = b"".join(self._bytes_of(id_) for id_ in members)[skipped:]
            skipped = 0
            self._append_text(data, position)
            position += len(data)
        for id_ in ids[same:]:
            self._ids.append(id_)
            self._ends.append((self._ends[-1] if self._ends else 0) + len(self._bytes_of(id_)))

    def _append_text(self, data: bytes, position: int) -> None:
        found = self._draft.extend(self._read, data)
        sizes = [len(self._draft.bytes[id_]) for id_ in found]
        # A mark in front of the text is not part of it; bytes that no token contains are.
        position += len(data) - sum(sizes)
        for id_, size in zip(found, sizes, strict=True):
            position += size
            self._append(id_, position)

    def _append(self, id_: int, end: int) -> None:
        self._read.append(id_)
        self._read_ends.append(end)

    def _bytes_of(self, id_: int) -> bytes:
        return b"" if id_ in self._unread or id_ >= self._target.num_tokens else self._target.bytes[id_]
