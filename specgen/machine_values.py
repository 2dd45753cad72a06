"""What a computer is, as frozen values. Sizes in bytes. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass


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
