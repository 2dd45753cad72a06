"""Says which vectors of this machine's CPU our own kernels run on, and whether on AMX."""

from __future__ import annotations

import ctypes
from functools import lru_cache

from specgen.core.machine import cpu_flags
from specgen.models.native_code import host_features, openmp_parallel
from specgen.models.vector_code import CpuVectors

WIDE_FEATURES = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512vnni"})
"""Features that vectors of 64 bytes need, by LLVM's names."""
NARROW_FEATURES = frozenset({"avx2", "fma", "f16c"})
"""Features that vectors of 32 bytes need."""

AMX_FEATURES = frozenset({"amx-tile", "amx-int8", "amx-bf16", "avx512bf16"})
"""Features that products on AMX need besides those of wide vectors."""
_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18
"""A system call of Linux on x86-64, its request and the feature: asm/unistd_64.h, asm/prctl.h, asm/fpu/types.h."""


def has_bfloat16_products(flags: frozenset[str]) -> bool:
    """Returns whether a CPU with these flags has bfloat16 products. Without them, bfloat16 is slower than float32."""
    return bool({"avx512_bf16", "amx_bf16"} & flags)


def cpu_vectors() -> CpuVectors | None:
    """Returns this machine's vectors; None if it has no AVX2, can't compile kernels or find torch's threads."""
    flags = cpu_flags()
    if "avx2" not in flags:
        return None
    try:
        features = host_features()
        return _vectors(features, flags) if openmp_parallel() is not None else None
    except (ImportError, OSError, RuntimeError):
        return None


def _vectors(features: frozenset[str], flags: frozenset[str]) -> CpuVectors | None:
    # A hypervisor may hide features from LLVM, and torch's settings may hide flags.
    if features >= WIDE_FEATURES and "avx512_vnni" in flags:
        return CpuVectors(64)
    if not features >= NARROW_FEATURES:
        return None
    return CpuVectors(32, has_vnni="avxvnni" in features)


@lru_cache(maxsize=1)
def may_use_amx() -> bool:
    """Returns whether our kernels may run on AMX.

    Linux lets a process use it only after a request, which holds for all its threads and children: see "Using XSTATE
    features in user space applications" in its documentation.
    """
    if cpu_vectors() != CpuVectors(64) or not {"amx_int8", "amx_bf16"} <= cpu_flags():
        return False
    if not host_features() >= AMX_FEATURES:
        return False
    result: int = ctypes.CDLL(None).syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA)
    return result == 0
