"""Saves and loads texts of the target with its features, as safetensors files that are written atomically."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from specgen.core.errors import OutputError
from specgen.distill.text_generation import TargetText
from specgen.storage.atomic_write import replacement, sync


def save_texts(path: Path, texts: Sequence[TargetText]) -> None:
    """Writes a file of texts.

    Raises:
        OutputError: The disk is full, or the folder cannot be written to.
    """
    tensors = {
        "ids": torch.cat([text.ids for text in texts]).to(torch.int32),
        "lengths": torch.tensor([len(text.ids) for text in texts]),
        "num_prompt": torch.tensor([text.num_prompt for text in texts]),
        "features": torch.cat([text.features for text in texts]).cpu(),
    }
    num_new = sum(len(text.ids) - text.num_prompt for text in texts)
    save_tensors(path, tensors, {"num_new": str(num_new)})


def read_texts(path: Path) -> Iterator[TargetText]:
    """Yields the texts of a file."""
    with safe_open(path, "pt") as file:
        ids, lengths = file.get_tensor("ids").long(), file.get_tensor("lengths").tolist()
        prompts, features = file.get_tensor("num_prompt").tolist(), file.get_tensor("features")
    parts = zip(ids.split(lengths), prompts, features.split([length - 1 for length in lengths]), strict=True)
    for part in parts:
        yield TargetText(*part)


def num_generated_tokens(path: Path) -> int:
    """Returns how many tokens of a file the target generated, from its header alone."""
    with safe_open(path, "pt") as file:
        return int((file.metadata() or {}).get("num_new", 0))


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file atomically.

    Raises:
        OutputError: The disk is full, or the folder cannot be written to.
    """
    try:
        with replacement(path) as temporary:
            save_file(tensors, temporary, metadata)
            sync(temporary)
    except Exception as error:  # the library has an error class of its own for a full disk
        raise OutputError(
            f"cannot write {path}: {error}", "free some space, or choose other folders with -o and --texts"
        ) from error
