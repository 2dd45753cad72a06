"""Allocates memory for weights apart from the C library's heap.

What the heap gets back, it keeps for the process in pieces between the weights that stay: after quantizing a model,
as much as the model itself. A mapping is returned to the system as a whole.
"""

from __future__ import annotations

import math
import mmap as mmap_module
from collections.abc import Sequence
from contextlib import suppress
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

import torch
from torch import Tensor

HUGE_BYTES = 2**22
"""`mapped_tensor` asks for huge pages from this size on. Memory of this size holds a whole page at any address."""


def mapped_tensor(shape: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, mmap | None]:
    """Returns a tensor of zeros on the CPU, and its memory; None if it has no values.

    It is in pages of 2 MiB if the system has them: a pass reads such weights up to a tenth faster.
    """
    if 0 in shape:
        return torch.empty(tuple(shape), dtype=dtype), None
    # Python's default is shared memory, whose pages take longer to get.
    memory = mmap(-1, math.prod(shape) * dtype.itemsize, flags=MAP_PRIVATE | MAP_ANONYMOUS)
    advice = getattr(mmap_module, "MADV_HUGEPAGE", None)
    if len(memory) >= HUGE_BYTES and advice is not None:
        with suppress(OSError):
            memory.madvise(advice)
    return torch.frombuffer(memory, dtype=dtype).view(*shape), memory


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns a new tensor for weights on a device."""
    return mapped_tensor(shape, dtype)[0] if device.type == "cpu" else torch.empty(shape, dtype=dtype, device=device)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Returns the concatenation of weights along their first dimension."""
    if len(parts) == 1:
        return parts[0]
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return torch.cat(list(parts), out=empty(shape, parts[0].dtype, parts[0].device))
