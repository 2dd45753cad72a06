"""Describes the computer: processor, memory and GPUs. Sizes in bytes. Standard library only."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from functools import cache
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
    """The computer that models run on.

    Args:
        system: Operating system and its version.
        processor: Its name.
        num_cores: Usable by this process.
        num_threads: Threads of torch.
        flags: CPU features that matter for speed.
        total_bytes: Memory; None if unknown.
        free_bytes: Memory that is still available, within a container's limit.
        gpus: CUDA devices.
        cuda_version: The version torch was built for; None without CUDA.
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


@cache
def version_of(library: str) -> str | None:
    """Returns the installed version of a library, without importing it; None if it is not installed."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


@cache
def cpu_flags() -> frozenset[str]:
    """Returns the processor's features in the kernel's names, as far as torch may use them; empty without /proc."""
    match = re.search(r"^flags\s*:(.*)$", _cpuinfo(), re.MULTILINE)
    flags = frozenset(match[1].split()) if match else frozenset()
    if os.environ.get("ATEN_CPU_CAPABILITY") in ("avx2", "default"):
        return frozenset(flag for flag in flags if not flag.startswith(("avx512", "amx")))
    return flags


def processor_name() -> str:
    """Returns the system's name of the processor."""
    match = re.search(r"^model name\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
