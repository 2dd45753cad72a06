"""Selects the tokens that a draft can propose, and the embedding and head rows that it shares with its target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specgen.distill.text_generation import TargetText


@dataclass(frozen=True, slots=True)
class SharedWeights:
    """Weights of the target that a draft uses and does not train.

    Args:
        embedding: `[vocab, hidden]`.
        head: `[m, hidden]`: the rows of `draft_ids`.
        draft_ids: `[m]`: tokens that the draft can propose.
        row_of: `[vocab]`: row of a token in `head`; -1 for tokens that cannot be drafted.
    """

    embedding: Tensor
    head: Tensor
    draft_ids: Tensor
    row_of: Tensor


def share_weights(embedding: Tensor, head: Tensor, draft_ids: Tensor) -> SharedWeights:
    """Selects the shared weights of a draft over these tokens."""
    row_of = torch.full((head.shape[0],), -1, device=head.device)
    row_of[draft_ids] = torch.arange(len(draft_ids), device=head.device)
    return SharedWeights(embedding, head[draft_ids].contiguous(), draft_ids, row_of)


def frequent_ids(texts: Sequence[TargetText], num_ids: int, vocab_size: int, always: Sequence[int]) -> Tensor:
    """Returns the tokens that the target writes most, ascending.

    Ties go to the lower id, which tokenizers learn earlier.

    Args:
        texts: Texts of the target.
        num_ids: How many tokens; 0 is all.
        vocab_size: Size of the vocabulary.
        always: Tokens included regardless of their count, such as end tokens.
    """
    if not num_ids or num_ids >= vocab_size:
        return torch.arange(vocab_size)
    counts = torch.zeros(vocab_size)
    for text in texts:
        counts += torch.bincount(text.ids[text.num_prompt :], minlength=vocab_size)
        # Answers repeat words of their prompts.
        counts += 0.1 * torch.bincount(text.ids[: text.num_prompt], minlength=vocab_size)
    counts[list(always)] = math.inf
    return counts.argsort(descending=True, stable=True)[:num_ids].sort().values
