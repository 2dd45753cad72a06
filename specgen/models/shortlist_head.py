"""A draft's head that computes the logits of a part of the vocabulary, as FR-Spec does (arXiv:2502.14856).

The head of a small model with a large vocabulary is a quarter of its weights or more, and a text uses few of its
tokens. Tokenizers number their tokens by frequency: the first ids are always computed, the others in blocks, where the
text has had tokens of them. A token without logits is never drafted; verification keeps the target's distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from specgen.models.build_decoder import MakeLinear
    from specgen.models.decoder_spec import DecoderSpec

NUM_FIRST = 2**16
"""Ids that are always computed. With blocks as below, 1 % of the tokens of English texts and code have no logits for
Qwen's tokenizer, and half of the head is computed."""
BLOCK_SIZE = 2**11
"""Ids that are computed together."""
MIN_VOCAB = 3 * 2**15
"""Smaller vocabularies are computed whole."""
NUM_REMEMBERED = 512
"""A block is computed while one of this many last tokens is in it."""
MAX_MISSES, NUM_WATCHED = 4, 64
"""If `MAX_MISSES` of `NUM_WATCHED` tokens had no logits, the text is in a language with high ids. Then all blocks are
computed for the next `NUM_REMEMBERED` tokens."""


class ShortlistHead(nn.Module):
    """A head in parts, which computes those that the text needs. Batch variant: for drafts only.

    Args:
        parts: Linear layers of consecutive ids. The first one is always computed.
        num_ids: Outputs of each part.
    """

    def __init__(self, parts: Sequence[nn.Module], num_ids: Sequence[int]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self._bounds = [0]
        for number in num_ids:
            self._bounds.append(self._bounds[-1] + number)
        self._text: list[int] = []
        """The part of each token that was read."""
        self._misses: list[int] = []
        """Positions of tokens without logits."""

    def replace_parts(self, first: nn.Module, make: Callable[[nn.Module], nn.Module]) -> None:
        """Replaces the first part, and makes others from the others."""
        self.parts = nn.ModuleList([first, *(make(part) for part in self.parts[1:])])

    def read(self, ids: Tensor, *, is_prompt: bool) -> None:
        """Notes the tokens `[n]` of a pass: their parts are computed from now on.

        Args:
            ids: On the CPU; rows of a tree, too.
            is_prompt: No draft was made for them, so none of them is a miss.
        """
        first, size = self._bounds[1], self._bounds[2] - self._bounds[1]
        computed = self._computed()
        for id_ in ids.tolist():
            part = 0 if id_ < first else 1 + (id_ - first) // size
            if not is_prompt and part not in computed:
                self._misses.append(len(self._text))
            computed.add(part)
            self._text.append(part)

    def cut(self, length: int) -> None:
        """Forgets what was read after `length` tokens, so that what is computed follows from the text alone."""
        del self._text[length:]
        self._misses = [position for position in self._misses if position < length]

    def keep_rows(self, length: int, rows: Sequence[int]) -> None:
        """Keeps a path of the tree that was read after `length` tokens."""
        kept = [self._text[length + row] for row in rows]
        self.cut(length + len(rows))
        self._text[length:] = kept

    def forward(self, hidden: Tensor) -> Tensor:
        """Turns inputs `[..., hidden]` into logits `[..., width]`, minus infinity where none are computed.

        The width is that of the ids up to the last computed one. With all ids, filling in and searching the logits
        took 4 % of the pass of a 0.5B.
        """
        computed = sorted(self._computed())
        if computed == [0]:
            logits: Tensor = self.parts[0](hidden)
            return logits
        logits = hidden.new_full((*hidden.shape[:-1], self._bounds[computed[-1] + 1]), -torch.inf)
        for index in computed:
            logits[..., self._bounds[index] : self._bounds[index + 1]] = self.parts[index](hidden)
        return logits

    def _computed(self) -> set[int]:
        """Returns the parts that the text needs."""
        last = self._misses[-MAX_MISSES:]
        is_recent = len(last) == MAX_MISSES and len(self._text) - last[-1] <= NUM_REMEMBERED
        if is_recent and last[-1] - last[0] < NUM_WATCHED:
            return set(range(len(self.parts)))
        return {0, *self._text[-NUM_REMEMBERED:]}


def has_shortlist(spec: DecoderSpec, num_ids: int) -> bool:
    """Returns whether a draft of this vocabulary computes a part of it. A soft cap would hide what has no logits."""
    return num_ids >= MIN_VOCAB and spec.logits_soft_cap is None


def num_always_computed(spec: DecoderSpec, num_ids: int) -> int:
    """Returns the number of ids whose logits a draft of this vocabulary computes in every text."""
    return NUM_FIRST if has_shortlist(spec, num_ids) else num_ids


def shortlist_head(weight: Tensor, make: MakeLinear) -> ShortlistHead:
    """Returns the head with weights `[vocab, hidden]`, whose parts `make` makes."""
    sizes = [NUM_FIRST, *[BLOCK_SIZE] * ((weight.shape[0] - NUM_FIRST) // BLOCK_SIZE)]
    if rest := weight.shape[0] - sum(sizes):
        sizes.append(rest)
    return ShortlistHead([make(part, None) for part in torch.split(weight, sizes)], sizes)
