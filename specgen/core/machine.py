"""What a computer is, as frozen values. Sizes in bytes. Standard library only."""

from __future__ import annotations

import functools
import platform
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Gpu:
    """A CUDA device. Sizes in bytes."""

    name: str
    device: str
    total_bytes: int
    free_bytes: int
    capability: str


@dataclass(frozen=True, slots=True)
class Machine:
    """What models run on.

    Args:
        system: Operating system and its version.
        processor: Its name.
        num_cores: Usable by this process.
        num_threads: What torch computes with.
        flags: Those that matter for speed.
        total_bytes: Memory; None where the system does not tell.
        free_bytes: What of it may still be taken, within a container's limit.
        gpus: CUDA devices.
        cuda_version: What torch was built for; None without CUDA.
    """

    system: str
    processor: str
    num_cores: int
    num_threads: int
    flags: tuple[str, ...]
    total_bytes: int | None
    free_bytes: int | None
    gpus: tuple[Gpu, ...]
    cuda_version: str | None


@functools.cache
def version_of(library: str) -> str | None:
    """The installed version of a library, without importing it; None if it is not there."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


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
