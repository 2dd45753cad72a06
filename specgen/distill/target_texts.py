"""Defines texts of the target with its features, groups them into padded batches, and saves and loads them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from specgen.core.errors import OutputError
from specgen.storage.atomic_write import replacement, sync


@dataclass(frozen=True, slots=True)
class TargetText:
    """A prompt with the target's answer, on the host.

    Args:
        ids: int64 `[n]`: prompt and answer; an end token is the last one.
        num_prompt: Length of the prompt.
        features: float16 `[n - 1, hidden]`: the head's input at each position but the last.
    """

    ids: Tensor
    num_prompt: int
    features: Tensor


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
    features = torch.zeros(len(texts), width, texts[0].features.shape[1], dtype=texts[0].features.dtype)
    for row, text in enumerate(texts):
        ids[row, : len(text.ids)] = text.ids
        features[row, : len(text.features)] = text.features
    num_prompts = torch.tensor([text.num_prompt for text in texts])
    lengths = torch.tensor([len(text.ids) for text in texts])
    return Batch(ids.to(device), features.to(device).float(), num_prompts.to(device), lengths.to(device))


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


def save_texts(path: Path, texts: Sequence[TargetText]) -> None:
    """Writes a file of texts.

    Raises:
        OutputError: The disk is full, or the folder can't be written to.
    """
    tensors = {
        "ids": torch.cat([text.ids for text in texts]).to(torch.int32),
        "lengths": torch.tensor([len(text.ids) for text in texts]),
        "num_prompt": torch.tensor([text.num_prompt for text in texts]),
        "features": torch.cat([text.features for text in texts]),
    }
    num_new = sum(len(text.ids) - text.num_prompt for text in texts)
    save_tensors(path, tensors, {"num_new": str(num_new)})


def read_texts(path: Path) -> list[TargetText]:
    """Returns the texts of a file."""
    with safe_open(path, "pt") as file:
        ids, lengths = file.get_tensor("ids").long(), file.get_tensor("lengths").tolist()
        prompts, features = file.get_tensor("num_prompt").tolist(), file.get_tensor("features")
    parts = zip(ids.split(lengths), prompts, features.split([length - 1 for length in lengths]), strict=True)
    return [TargetText(*part) for part in parts]


def num_generated_tokens(path: Path) -> int:
    """Returns how many tokens of a file the target generated, from its header alone."""
    with safe_open(path, "pt") as file:
        return int((file.metadata() or {}).get("num_new", 0))


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file atomically.

    Raises:
        OutputError: The disk is full, or the folder can't be written to.
    """
    try:
        with replacement(path) as temporary:
            save_file(tensors, temporary, metadata)
            sync(temporary)
    except Exception as error:  # the library has an error class of its own for a full disk
        raise OutputError(
            f"can't write {path}: {error}", "free some space, or choose other folders with -o and --texts"
        ) from error
