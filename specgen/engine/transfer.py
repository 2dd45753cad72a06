"""Copies between the host and a device without waiting.

A copy between ordinary memory and CUDA waits for the work in the stream; one from or to pinned memory does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from specgen.engine.inference_mode import in_inference_mode


def is_on_host(tensor: Tensor) -> bool:
    """Returns whether reading a tensor waits for nothing."""
    return tensor.device.type == "cpu"


def has_numpy_view(tensor: Tensor) -> bool:
    """Returns whether numpy can compute with a tensor where it is."""
    return is_on_host(tensor) and tensor.dtype in (torch.float32, torch.float64)


def ids_on(device: torch.device, ids: Sequence[int]) -> Tensor:
    """Copies ids to a device, `[n]`."""
    is_cuda = device.type == "cuda"
    return torch.tensor(ids, dtype=torch.int64, pin_memory=is_cuda).to(device, non_blocking=is_cuda)


def upload(to: Tensor, numbers: Sequence[int]) -> None:
    """Copies numbers into a tensor `[n]` of int64. Nothing waits.

    Each call has pinned memory of its own, which can't be overwritten before it is read: torch's allocator notes the
    copy, and gives the memory away only when it has ended.
    """
    is_cuda = to.is_cuda
    to.copy_(torch.tensor(numbers, dtype=torch.int64, pin_memory=is_cuda), non_blocking=is_cuda)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns a tensor on a device: itself if it is there. Only a copy from a device to the host waits."""
    if tensor.device == device:
        return tensor
    if tensor.device.type == "cpu" and device.type == "cuda" and tensor.numel():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type != "cpu")


def current_stream(device: torch.device) -> Any:
    """Returns the stream that work on a CUDA device is launched in."""
    # By index: torch takes 3 µs to find it in a device, several times a round.
    return torch.cuda.current_stream(device if device.index is None else device.index)


class HostCopy:
    """Copies a small tensor to the host. Reading it waits for this copy, not for work that was launched after it.

    Args:
        source: `[n]`, at a fixed address.
    """

    def __init__(self, source: Tensor) -> None:
        self._source = self._copy = source
        self._copied: Any = None
        if source.device.type == "cuda":
            with torch.inference_mode():
                self._copy = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]

    @in_inference_mode
    def start(self) -> None:
        """Copies the values that the work launched so far computes. Nothing waits."""
        if self._copied is not None:
            self._copy.copy_(self._source, non_blocking=True)
            self._copied.record(current_stream(self._source.device))

    def read(self) -> list[Any]:
        """Returns the values of the last copy; on a device without CUDA, the present ones."""
        if self._copied is not None:
            self._copied.synchronize()
        return list(self._copy.tolist())
