"""Compiles kernels for this machine's CPU, and finds torch's threads for them.

Kernels are written in LLVM IR and compiled by llvmlite when they are first needed, which takes 0.1 seconds: no
compiler has to be installed.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., None]
_WIDE_ONLY = ("avx512", "avx10", "amx", "evex512")
"""Starts of the names of features that belong to vectors of 64 bytes."""


class NativeCode:
    """Holds functions compiled from LLVM IR. They release the interpreter lock while they run.

    LLVM ends the process if the text has instructions that `host_features` lacks.

    Raises:
        ImportError: llvmlite is not installed.
        RuntimeError: The text is invalid, or the system allows no new code in memory.
    """

    def __init__(self, text: str) -> None:
        import llvmlite.binding as llvm

        module = llvm.parse_assembly(text)
        module.verify()
        self._engine: Any = llvm.create_mcjit_compiler(module, target_machine())
        self._engine.finalize_object()

    def function(self, name: str, num_arguments: int) -> Function:
        """Returns a function whose arguments are integers and addresses, 64 bits each, and which returns nothing."""
        address = self.address(name)
        if not _is_executable(address):
            raise RuntimeError("the system allows no new code in memory")
        function: Function = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * num_arguments)(address)
        return function

    def address(self, name: str) -> int:
        """Returns where a function is. It stays there as long as this object lives."""
        address: int = self._engine.get_function_address(name)
        return address


def target_machine() -> Any:
    """Returns what LLVM compiles for: this CPU with `host_features`."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target: Any = llvm.Target.from_default_triple()
    return target.create_target_machine(cpu=llvm.get_host_cpu_name(), features=_features().flatten(), opt=2)


def host_features() -> frozenset[str]:
    """Returns the CPU's features by LLVM's names, without those that torch may not use either.

    A hypervisor may hide some that the system lists.

    Raises:
        ImportError: llvmlite is not installed.
    """
    return frozenset(name for name, is_there in _features().items() if is_there)


def _features() -> Any:
    """Returns which features the CPU has, of all that LLVM knows.

    Without AVX512, a vector of 64 bytes becomes two of 32.
    """
    import llvmlite.binding as llvm

    features: Any = llvm.get_host_cpu_features()
    if os.environ.get("ATEN_CPU_CAPABILITY") in ("avx2", "default"):  # as in `core.machine.cpu_flags`
        features.update(dict.fromkeys((name for name in features if name.startswith(_WIDE_ONLY)), False))
    return features


def _is_executable(address: int) -> bool:
    """Returns whether code may run at an address. Hardened systems deny it silently."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        bounds, rights, *_ = line.split()
        first, last = (int(bound, 16) for bound in bounds.split("-"))
        if first <= address < last:
            return "x" in rights
    return False


@lru_cache(maxsize=1)
def openmp_parallel() -> int | None:
    """Returns the address of OpenMP's entry point in the library that torch's own kernels use; None if it has none.

    Its arguments are those of `GOMP_parallel` in GCC's documentation "The libgomp ABI". The threads that it runs on
    are torch's: others would compete with them for the cores.
    """
    library = _openmp_library()
    return None if library is None else ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value


def set_own_threads(number: int) -> None:
    """Sets on how many threads this Python thread computes.

    `torch.set_num_threads` sets it for all Python threads that have not used torch yet, too. They keep it.
    """
    library = _openmp_library()
    set_number = torch.set_num_threads if library is None else library.omp_set_num_threads
    set_number(number)


@lru_cache(maxsize=1)
def _openmp_library() -> ctypes.CDLL | None:
    for path in sorted(Path(torch.__file__).with_name("lib").glob("lib[gi]omp*.so*")):
        library = ctypes.CDLL(str(path))
        if hasattr(library, "GOMP_parallel"):
            return library
    return None


@lru_cache
def bits_of(value: float) -> int:
    """Returns the bits of a float32."""
    bits: int = struct.unpack("<I", struct.pack("<f", value))[0]
    return bits


def floats(*sizes: int) -> Tensor:
    """Returns a new float32 tensor. torch's defaults of type and device may have been changed by other code."""
    return torch.empty(sizes, dtype=torch.float32, device="cpu")


def integers(*sizes: int) -> Tensor:
    """Returns a new int32 tensor."""
    return torch.empty(sizes, dtype=torch.int32, device="cpu")
