"""Reads the values of tensors in a GGUF file as float32, in pieces that stay in a processor's cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from specgen.core.model_files import corrupt
from specgen.loading.gguf.contents import GgufTensor

PIECE_VALUES = 2**17
"""Values that are unpacked at once: whole blocks of all types. With fewer, threads wait for the interpreter's lock
between numpy's calls; arrays of more leave the cache."""
SERIAL_VALUES = 2**15
"""torch converts up to this many values in the calling thread, and starts threads for more."""


def float_pieces(path: Path, tensor: GgufTensor, first: int, count: int) -> Iterator[Tensor]:
    """Yields values of a tensor in float32, in order; each piece is valid until the next one.

    Args:
        first: Number of the first value; a multiple of `PIECE_VALUES`.
        count: How many values.

    Raises:
        ModelFileError: The file has become shorter since it was checked.
    """
    kind = gguf.GGMLQuantizationType(tensor.kind)
    buffer: Any = np.empty(tensor.bytes_of(min(count, PIECE_VALUES)), np.uint8)
    with path.open("rb", buffering=0) as file:
        file.seek(tensor.begin + tensor.bytes_of(first))
        for start in range(0, count, PIECE_VALUES):
            stored = buffer[: tensor.bytes_of(min(PIECE_VALUES, count - start))]
            if file.readinto(stored) != stored.nbytes:
                raise corrupt(path, "truncated while it was read")
            values = torch.from_numpy(gguf.dequantize(stored, kind))
            for begin in range(0, len(values), SERIAL_VALUES):
                yield values[begin : begin + SERIAL_VALUES]


def float_values(path: Path, tensor: GgufTensor) -> Tensor:
    """Returns all values of a tensor in float32.

    Raises:
        ModelFileError: The file has become shorter since it was checked.
    """
    pieces = [piece.clone() for piece in float_pieces(path, tensor, 0, tensor.num_values)]
    return torch.cat(pieces).view(tensor.shape)
