"""Inspects this computer and its libraries, for benchmark reports and `doctor`."""

from __future__ import annotations

import os
import platform
import sys

from specgen.core import __version__
from specgen.core.machine import Gpu, Machine, cpu_flags, processor_name, version_of
from specgen.loading.memory import free_bytes, total_bytes

LIBRARIES = (
    *("torch", "transformers", "accelerate", "bitsandbytes", "tokenizers", "safetensors", "gguf", "huggingface-hub"),
    *("llama-cpp-python", "llvmlite", "scipy", "rich", "typer", "matplotlib"),
)
SPEED_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8")
"""Processor flags that decide the speed of matrix products."""


def inspect_machine() -> Machine:
    """Returns what this computer has. Imports torch."""
    import torch

    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=processor_name(),
        num_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        num_threads=torch.get_num_threads(),
        flags=tuple(flag for flag in SPEED_FLAGS if flag in cpu_flags()),
        total_bytes=total_bytes(),
        free_bytes=free_bytes("cpu"),
        gpus=_gpus(),
        cuda_version=torch.version.cuda,
    )


def library_versions() -> dict[str, str | None]:
    """Returns the installed versions by name without importing the libraries; None if not installed."""
    own = {"specgen": __version__, "python": platform.python_version()}
    return {**own, **{name: version_of(name) for name in LIBRARIES}}


def environment(arguments: list[str] | None = None) -> dict[str, object]:
    """Returns the environment of a measurement, ready for JSON."""
    machine = inspect_machine()
    return {
        "command": ["specgen", *(sys.argv[1:] if arguments is None else arguments)],
        "system": machine.system,
        "processor": machine.processor,
        "num_cores": machine.num_cores,
        "num_threads": machine.num_threads,
        "flags": list(machine.flags),
        "total_memory_bytes": machine.total_bytes,
        "gpus": [{"name": gpu.name, "total_bytes": gpu.total_bytes} for gpu in machine.gpus],
        "cuda": machine.cuda_version,
        "libraries": library_versions(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }


def _gpus() -> tuple[Gpu, ...]:
    import torch

    if not torch.cuda.is_available():
        return ()
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        try:
            free, total = torch.cuda.mem_get_info(index)
        except RuntimeError:  # a device that does not respond
            free, total = 0, properties.total_memory
        capability = f"{properties.major}.{properties.minor}"
        gpus.append(Gpu(properties.name, f"cuda:{index}", int(total), int(free), capability))
    return tuple(gpus)
