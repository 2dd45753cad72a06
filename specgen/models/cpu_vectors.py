"""Says which vectors of this machine's CPU our own kernels run on."""

from __future__ import annotations

from specgen.core.machine import cpu_flags
from specgen.models.native_code import host_features, openmp_parallel
from specgen.models.vector_code import CpuVectors

WIDE_FEATURES = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512vnni"})
"""Features that vectors of 64 bytes need, by LLVM's names."""
NARROW_FEATURES = frozenset({"avx2", "fma", "f16c"})
"""Features that vectors of 32 bytes need."""


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
