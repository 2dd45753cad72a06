"""Marks which tokens are in the text, for the repetition penalty."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specgen.core.settings import SamplingSettings
from specgen.engine.transfer import ids_on


class SeenTokens:
    """The tokens of one text, marked on a device. An update copies the new tokens only.

    Args:
        vocab_size: Ids from here on are not marked: a draft's vocabulary may be smaller than the text's ids, and on
            CUDA an index after the end makes the process unusable.
        device: Where the logits are.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._marks = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self._ids: list[int] = []

    def update(self, ids: Sequence[int]) -> None:
        """Marks the tokens of `ids` and no others."""
        if len(ids) < len(self._ids) or list(ids[: len(self._ids)]) != self._ids:
            # Removed tokens may occur elsewhere in the text.
            self._marks.zero_()
            self._ids = []
        new = ids[len(self._ids) :]
        known = [token for token in new if token < self._marks.shape[0]]
        if known:
            self._marks.index_fill_(0, ids_on(self._marks.device, known), True)
        self._ids += new

    def row(self, draft_ids: Tensor) -> Tensor:
        """Returns the marks after the text and a draft, `[1, vocab_size]`."""
        return self._marks.index_fill(0, draft_ids, True)[None]

    def rows(self, draft_ids: Tensor) -> Tensor:
        """Returns the marks at each position of a draft, `[drafted + 1, vocab_size]`.

        Args:
            draft_ids: `[drafted]`; row i also includes the first i of them.
        """
        num_drafted = draft_ids.shape[0]
        rows = self._marks.repeat(num_drafted + 1, 1)
        for position in range(num_drafted):
            rows[position + 1 :].index_fill_(1, draft_ids[position : position + 1], True)
        return rows

    def tree_rows(self, draft_ids: Tensor, parents: Sequence[int]) -> Tensor:
        """Returns the marks after the text and after each token of a tree, `[drafted + 1, vocab_size]`.

        Args:
            draft_ids: `[drafted]`; the row of a token also includes it and those on the path to it.
            parents: As in `DraftTree`.
        """
        rows = [self._marks]
        for index, parent in enumerate(parents):
            rows.append(rows[parent + 1].index_fill(0, draft_ids[index : index + 1], True))
        return torch.stack(rows)


def seen_tokens(settings: SamplingSettings, vocab_size: int, device: torch.device) -> SeenTokens | None:
    """Returns a new record of seen tokens; None if no processor needs it."""
    return None if settings.repetition_penalty == 1.0 else SeenTokens(vocab_size, device)
