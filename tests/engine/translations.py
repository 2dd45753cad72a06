"""A translation between two vocabularies given as lists of strings, for tests of the drafters."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from specgen.engine.drafters.translated import SharedTokens


class StringTranslation:
    """Encodes by the longest token at each place; characters unknown are left out.

    Args:
        target: The target's tokens, id by position.
        draft: The draft's.
        end_id: The draft's id that ends the text, and the target's.
    """

    def __init__(self, target: Sequence[str], draft: Sequence[str], ends: tuple[int, int] | None = None) -> None:
        self._target, self._draft, self._ends = target, draft, ends

    def draft_ids(self, ids: Sequence[int]) -> list[int]:
        return encode(self._draft, "".join(self._target[id_] for id_ in ids)) or [0]

    def target_ids(self, ids: Sequence[int], written: Sequence[int]) -> tuple[list[int], bool]:
        ended = self._ends is not None and self._ends[0] in written
        length = written.index(self._ends[0]) if self._ends is not None and ended else len(written)
        found = encode(self._target, "".join(self._draft[id_] for id_ in written[:length]))
        if self._ends is not None and ended:
            return [*found, self._ends[1]], True
        return found, False

    @property
    def shared(self) -> SharedTokens:
        """The tokens that are in both lists."""
        pairs = [(i, self._draft.index(token)) for i, token in enumerate(self._target) if token in self._draft]
        target_ids, draft_ids = zip(*pairs, strict=True) if pairs else ((), ())
        return SharedTokens(torch.tensor(target_ids, dtype=torch.int64), torch.tensor(draft_ids, dtype=torch.int64))


def encode(tokens: Sequence[str], text: str) -> list[int]:
    """Returns the ids of a text."""
    found = []
    while text:
        longest = max((token for token in tokens if token and text.startswith(token)), key=len, default=None)
        if longest is not None:
            found.append(tokens.index(longest))
        text = text[len(longest or text[0]) :]
    return found
