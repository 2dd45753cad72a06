"""Compiles the kernels of weight formats for this machine, when they are first needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

import torch

from specgen.models.cpu_vectors import cpu_vectors
from specgen.models.float_code import float_code
from specgen.models.int8_code import int8_tiles
from specgen.models.kernel_code import complete_text, kernel_text
from specgen.models.native_code import NativeCode
from specgen.models.native_weight import Kernels, RoundingKernels, kernels_of
from specgen.models.nf4_code import nf4_tiles
from specgen.models.prologue_code import PROLOGUES
from specgen.models.vector_code import CpuVectors, Tiles

KERNELS_VERSION = 6
"""Costs that were measured with another version are measured again."""
Compiled = TypeVar("Compiled", bound=Kernels)


@lru_cache(maxsize=1)
def int8_kernels() -> RoundingKernels | None:
    """Returns the kernels of int8 for this machine, or None: see `_on_this_machine`."""
    return _on_this_machine(lambda vectors: compile_kernels(int8_tiles, vectors))


@lru_cache(maxsize=1)
def nf4_kernels() -> RoundingKernels | None:
    """Returns the kernels of nf4 for this machine, or None: see `_on_this_machine`."""
    return _on_this_machine(lambda vectors: compile_kernels(nf4_tiles, vectors))


@lru_cache(maxsize=2)
def float_kernels(dtype: torch.dtype) -> Kernels | None:
    """Returns the kernels of weights in bfloat16 or float16, or None: see `_on_this_machine`."""
    return _on_this_machine(lambda vectors: compile_float_kernels(dtype, vectors))


def _on_this_machine(compile_for: Callable[[CpuVectors], Compiled]) -> Compiled | None:
    """Compiles a format's kernels for this machine's vectors.

    None if the CPU has no AVX2, llvmlite is not installed, the system allows no new code, or torch's OpenMP library is
    not where torch's own packages have it.
    """
    vectors = cpu_vectors()
    try:
        return None if vectors is None else compile_for(vectors)
    except RuntimeError:
        return None


def compile_kernels(tiles: Callable[[CpuVectors], Tiles], vectors: CpuVectors) -> RoundingKernels:
    """Compiles the kernels of a format that rounds rows, for a kind of vectors."""
    return kernels_of(NativeCode(kernel_text(tiles(vectors), PROLOGUES)), vectors)


def compile_float_kernels(dtype: torch.dtype, vectors: CpuVectors) -> Kernels:
    """Compiles kernels of weights in bfloat16 or float16 for a kind of vectors."""
    code = NativeCode(complete_text(float_code(vectors.num_bytes, dtype), PROLOGUES))
    return Kernels(code, vectors, code.function("run", 4))
