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
from threading import Lock

import torch
from torch import Tensor

HUGE_BYTES = 2**22
"""Memory is asked for huge pages from this size on. Memory of this size holds a whole page at any address."""
SHARED_BYTES = 2**25
"""Memory that small weights share. What they leave is never touched, so it takes no pages."""
ALIGNMENT = 64


def _mapping(num_bytes: int) -> mmap:
    """Returns new memory, in pages of 2 MiB if the system has them: a pass reads such weights up to a tenth faster."""
    # Python's default is shared memory, whose pages take longer to get.
    memory = mmap(-1, num_bytes, flags=MAP_PRIVATE | MAP_ANONYMOUS)
    advice = getattr(mmap_module, "MADV_HUGEPAGE", None)
    if num_bytes >= HUGE_BYTES and advice is not None:
        with suppress(OSError):
            memory.madvise(advice)
    return memory


def mapped_tensor(shape: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, memoryview]:
    """Returns a tensor of zeros on the CPU, and its memory."""
    if 0 in shape:
        return torch.empty(tuple(shape), dtype=dtype), memoryview(bytearray())
    memory = _mapping(math.prod(shape) * dtype.itemsize)
    return torch.frombuffer(memory, dtype=dtype).view(*shape), memoryview(memory)


class SharedMemory:
    """Memory for weights that stay in it. Small ones lie next to each other, so that they are in huge pages, too.

    Small weights of SmolLM2-135M in pages of 4 KiB took a tenth longer to multiply. Memory is returned to the system
    with the last tensor in it. May be used by several threads.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._memory: mmap | None = None
        self._end = 0

    def mapped_tensor(self, shape: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, memoryview]:
        """As the function of this name."""
        num_bytes = math.prod(shape) * dtype.itemsize
        if not num_bytes or num_bytes >= HUGE_BYTES:
            return mapped_tensor(shape, dtype)
        with self._lock:
            first = -(-self._end // ALIGNMENT) * ALIGNMENT
            if self._memory is None or first + num_bytes > len(self._memory):
                self._memory, first = _mapping(SHARED_BYTES), 0
            memory, self._end = self._memory, first + num_bytes
        tensor = torch.frombuffer(memory, dtype=dtype, count=math.prod(shape), offset=first).view(*shape)
        return tensor, memoryview(memory)[first : first + num_bytes]


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns a new tensor for weights on a device."""
    return mapped_tensor(shape, dtype)[0] if device.type == "cpu" else torch.empty(shape, dtype=dtype, device=device)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Returns the concatenation of weights along their first dimension."""
    if len(parts) == 1:
        return parts[0]
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return torch.cat(list(parts), out=empty(shape, parts[0].dtype, parts[0].device))
