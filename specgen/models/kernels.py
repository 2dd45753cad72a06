"""Compiles the kernels of weight formats for this machine, when they are first needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from threading import Lock
from typing import TypeVar

import torch

from specgen.models.amx_code import columns_code
from specgen.models.amx_formats import BFLOAT16_COLUMNS, INT8_COLUMNS, bfloat16_amx, int8_amx
from specgen.models.amx_registers import AMX_OUTPUTS
from specgen.models.cpu_vectors import cpu_vectors, may_use_amx
from specgen.models.float_code import PACKING, float_code
from specgen.models.int8_code import int8_tiles
from specgen.models.kernel_code import ROUNDING, complete_text, kernel_text, rounding_code
from specgen.models.native_code import NativeCode
from specgen.models.native_weight import Kernels, RoundingKernels, kernels_of
from specgen.models.nf4_code import nf4_tiles
from specgen.models.prologue_code import PROLOGUES
from specgen.models.vector_code import CpuVectors, Tiles

KERNELS_VERSION = 13
"""Costs that were measured with another version are measured again."""
INT8_ROWS_ON_VECTORS = 3
"""Rows up to which vectors are faster than AMX in int8. A pass over one row of Qwen2.5-Coder-1.5B took 49 ms on vectors
and 51 on AMX on an Intel Xeon (model 207), over four rows 57 and 54. The sums are the same."""
_COMPILING = Lock()
"""Layers are packed in several threads, and those of few outputs need kernels that were not compiled ahead."""
Compiled = TypeVar("Compiled", bound=Kernels)


def int8_kernels(num_outputs: int = AMX_OUTPUTS) -> RoundingKernels | None:
    """Returns the kernels of int8 weights with so many outputs for this machine, or None: see `_on_this_machine`."""
    with _COMPILING:
        return compiled_int8(num_outputs >= AMX_OUTPUTS and may_use_amx())


@lru_cache(maxsize=2)
def compiled_int8(on_amx: bool) -> RoundingKernels | None:
    """Returns the kernels of int8 on AMX or on vectors, or None: see `_on_this_machine`."""
    return _on_this_machine(compile_int8_amx if on_amx else lambda vectors: compile_kernels(int8_tiles, vectors))


def nf4_kernels() -> RoundingKernels | None:
    """Returns the kernels of nf4 for this machine, or None: see `_on_this_machine`."""
    with _COMPILING:
        return compiled_nf4(may_use_amx())


@lru_cache(maxsize=2)
def compiled_nf4(on_amx: bool) -> RoundingKernels | None:
    """Returns the kernels of nf4 on AMX or on vectors, or None: see `_on_this_machine`."""
    return _on_this_machine(lambda vectors: compile_kernels(partial(nf4_tiles, on_amx=on_amx), vectors))


def float_kernels(dtype: torch.dtype, num_outputs: int = AMX_OUTPUTS) -> Kernels | None:
    """Returns the kernels of weights in bfloat16 or float16 with so many outputs, or None: see `_on_this_machine`."""
    with _COMPILING:
        return compiled_float(dtype, dtype == torch.bfloat16 and num_outputs >= AMX_OUTPUTS and may_use_amx())


@lru_cache(maxsize=3)
def compiled_float(dtype: torch.dtype, on_amx: bool) -> Kernels | None:
    """Returns the kernels of 16-bit weights on AMX or on vectors, or None: see `_on_this_machine`."""
    if on_amx:
        return _on_this_machine(compile_bfloat16_amx)
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
    code = NativeCode(complete_text(float_code(vectors.num_bytes, dtype), PROLOGUES, PACKING))
    return Kernels(code, vectors, code.function("run", 4), packs_columns=False)


def compile_int8_amx(vectors: CpuVectors) -> RoundingKernels:
    """Compiles the kernels of int8 on AMX. CPUs that have it have vectors of 64 bytes."""
    return kernels_of(NativeCode(int8_amx_text(vectors)), vectors, packs_columns=True)


def int8_amx_text(vectors: CpuVectors) -> str:
    """Returns the kernels of int8 on AMX in LLVM IR. Few rows are multiplied on vectors."""
    code = rounding_code(int8_tiles(vectors, INT8_ROWS_ON_VECTORS)) + columns_code(int8_amx())
    return complete_text(code, PROLOGUES, INT8_COLUMNS, ROUNDING, INT8_ROWS_ON_VECTORS)


def compile_bfloat16_amx(vectors: CpuVectors) -> Kernels:
    """Compiles the kernels of bfloat16 on AMX."""
    code = NativeCode(complete_text(columns_code(bfloat16_amx()), PROLOGUES, BFLOAT16_COLUMNS))
    return Kernels(code, vectors, code.function("run", 4), packs_columns=True)
