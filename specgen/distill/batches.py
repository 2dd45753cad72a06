"""Groups texts of similar length into padded batches."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specgen.distill.text_generation import TargetText


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts padded on the right.

    Args:
        ids: `[batch, n]`.
        features: `[batch, n, hidden]`.
        num_prompts: `[batch]`: prompt length of each text.
        lengths: `[batch]`: length of each text.
    """

    ids: Tensor
    features: Tensor
    num_prompts: Tensor
    lengths: Tensor


def pad_batch(texts: Sequence[TargetText], device: torch.device) -> Batch:
    """Makes a batch. The last token of each text has no feature and is only predicted."""
    width = max(len(text.ids) for text in texts)
    ids = torch.zeros(len(texts), width, dtype=torch.int64)
    features = torch.zeros(len(texts), width, texts[0].features.shape[1])
    for row, text in enumerate(texts):
        ids[row, : len(text.ids)] = text.ids
        features[row, : len(text.features)] = text.features
    num_prompts = torch.tensor([text.num_prompt for text in texts])
    lengths = torch.tensor([len(text.ids) for text in texts])
    return Batch(ids.to(device), features.to(device), num_prompts.to(device), lengths.to(device))


def batch_indices(texts: Sequence[TargetText], batch_tokens: int, seed: str) -> list[list[int]]:
    """Returns the indices of the texts of each batch of an epoch: similar lengths together, in random order."""
    rng = random.Random(seed)  # noqa: S311
    order = sorted(range(len(texts)), key=lambda index: len(texts[index].ids) + rng.uniform(0, 8))
    batches: list[list[int]] = [[]]
    width = 0
    for index in order:
        width = max(width, len(texts[index].ids))
        if batches[-1] and (len(batches[-1]) + 1) * width > batch_tokens:
            batches.append([])
            width = len(texts[index].ids)
        batches[-1].append(index)
    rng.shuffle(batches)
    return batches
