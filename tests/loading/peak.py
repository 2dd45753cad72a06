"""The peak of this process's memory, counted so that it shows what the code holds."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

M_MMAP_THRESHOLD = -3
THRESHOLD_BYTES = 64 * 2**10


def return_freed_memory() -> None:
    """Makes the C library return each large block as it is freed.

    Otherwise glibc keeps up to 32 MiB of freed blocks for each thread, which depends on the order in which threads run:
    the same 20 MB of values made peaks of 29 to 54 MB.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none, and returns them always
    if mallopt is not None:
        assert mallopt(M_MMAP_THRESHOLD, THRESHOLD_BYTES) == 1


def peak_bytes() -> int:
    """Returns the most that was resident so far."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])
