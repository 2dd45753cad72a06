"""Measures the peak memory of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


class PeakMemory:
    """Measures the peak of device memory on CUDA, and of the resident set size on Linux; elsewhere it returns None.

    Args:
        devices: The devices of the models.
    """

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self._uses_cuda = any(device.type == "cuda" for device in devices)
        self._is_known = self._uses_cuda

    def reset(self) -> None:
        """Starts a new measurement."""
        if self._uses_cuda:
            import torch

            for index in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(index)
            return
        try:
            _CLEAR.write_text("5")  # sets VmHWM back to the present size; see proc(5)
            self._is_known = True
        except OSError:
            self._is_known = False

    def read(self) -> int | None:
        """Returns the peak since `reset` in bytes; None if the system does not report it."""
        if not self._is_known:
            return None
        if self._uses_cuda:
            import torch

            return sum(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count()))
        try:
            line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
            return int(line.split()[1]) * 1024
        except (OSError, StopIteration, ValueError, IndexError):
            return None
