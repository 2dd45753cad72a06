"""Compiles kernels for this machine's CPU and runs them on torch's threads.

Kernels are written in LLVM's language and compiled by llvmlite when they are first needed, which takes 0.1 seconds: no
compiler has to be installed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

Function = Callable[..., None]


class NativeCode:
    """Functions compiled from a text in LLVM's language. They release the interpreter lock while they run.

    Raises:
        RuntimeError: The text is invalid, or this CPU lacks its instructions.
    """

    def __init__(self, text: str) -> None:
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        target: Any = llvm.Target.from_default_triple()
        machine = target.create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2
        )
        module = llvm.parse_assembly(text)
        module.verify()
        self._engine: Any = llvm.create_mcjit_compiler(module, machine)
        self._engine.finalize_object()

    def function(self, name: str, num_arguments: int) -> Function:
        """Returns a function whose arguments are integers and addresses, 64 bits each, and which returns nothing."""
        kind = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * num_arguments)
        function: Function = kind(self._engine.get_function_address(name))
        return function


@lru_cache(maxsize=1)
def openmp_parallel() -> Function | None:
    """Returns OpenMP's entry point in the library that torch's own kernels use; None if it has another one.

    Its arguments are those of `GOMP_parallel` in GCC's documentation "The libgomp ABI". The threads that it runs on
    are torch's: others would compete with them for the cores.
    """
    for path in sorted(Path(torch.__file__).with_name("lib").glob("lib[gi]omp*.so*")):
        function: Any = getattr(ctypes.CDLL(str(path)), "GOMP_parallel", None)
        if function is not None:
            function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            function.restype = None
            parallel: Function = function
            return parallel
    return None


def run_job(job: Function, arguments: ctypes.Array[ctypes.c_int64]) -> None:
    """Runs a function on all of torch's threads. Each of them gets the same arguments, and claims parts of the work."""
    parallel, num_threads = openmp_parallel(), torch.get_num_threads()
    if parallel is None or num_threads == 1:
        job(ctypes.addressof(arguments))
    else:
        parallel(job, ctypes.addressof(arguments), num_threads, 0)
