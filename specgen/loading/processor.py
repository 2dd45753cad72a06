"""The processor: what it is called and what it can do. No torch."""

from __future__ import annotations

import platform
import re
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """What the processor can do, in the kernel's names; empty where there is no /proc."""
    found = re.search(r"^flags\s*:(.*)$", _cpuinfo(), re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def processor_name() -> str:
    """The processor, as the system calls it."""
    found = re.search(r"^model name\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
