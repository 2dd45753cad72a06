"""Says how much memory a device has, how much was used, and that a model needs more, in bytes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from specgen.core import cgroups
from specgen.core.errors import MemoryShortageError
from specgen.core.units import format_size

if TYPE_CHECKING:
    import torch


def free_bytes(device: str) -> int | None:
    """Returns the free memory of a device, with what torch keeps of freed tensors; None if unknown."""
    if device.startswith("cuda"):
        import torch

        where = torch.device(device)
        free, _ = torch.cuda.mem_get_info(where)
        return int(free) + torch.cuda.memory_reserved(where) - torch.cuda.memory_allocated(where)
    if device != "cpu":
        return None
    known = [number for number in (_meminfo("MemAvailable"), cgroups.free_memory()) if number is not None]
    return min(known) if known else None


def total_bytes() -> int | None:
    """Returns the main memory, or the container's limit if that is less; None if unknown."""
    known = [number for number in (_meminfo("MemTotal"), cgroups.memory_limit()) if number is not None]
    return min(known) if known else None


def peak_memory_bytes(devices: Sequence[torch.device]) -> int:
    """Returns the peak memory so far: of the CUDA devices if there are any, else of the process (resident size).

    On CUDA it is what torch reserved: the memory of recorded passes is not allocated between replays.
    """
    if any(device.type == "cuda" for device in devices):
        from torch import cuda

        return sum(cuda.max_memory_reserved(index) for index in range(cuda.device_count()))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def shortage(what: str, device: str, needed: int, quant: str) -> MemoryShortageError:
    """Returns the error for a model that does not fit; its hint names the most effective fix first."""
    free = free_bytes(device)
    have = "" if free is None else f", {format_size(free)} free"
    fixes = [] if quant != "none" else ["--quant nf4"]
    fixes += ["a smaller model", "no draft (--draft none)", "a shorter context"]
    return MemoryShortageError(
        f"not enough memory on {device} for {what}: about {format_size(needed)} needed{have}", f"try {', '.join(fixes)}"
    )


def _meminfo(key: str) -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    if key == "MemAvailable" and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
