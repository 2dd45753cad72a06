"""Copies from the host to a device without waiting.

A copy from ordinary memory to CUDA waits for the work in the stream; one from pinned memory does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def ids_on(device: torch.device, ids: Sequence[int]) -> Tensor:
    """Copies ids to a device, `[n]`."""
    is_cuda = device.type == "cuda"
    return torch.tensor(ids, dtype=torch.int64, pin_memory=is_cuda).to(device, non_blocking=is_cuda)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns a tensor on a device: itself if it is there. Only a copy from a device to the host waits."""
    if tensor.device.type == "cpu" and device.type == "cuda" and tensor.numel():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type != "cpu")
