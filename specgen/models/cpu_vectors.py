"""Says which vectors of this machine's CPU our own kernels run on."""

from __future__ import annotations

from specgen.core.machine import cpu_flags
from specgen.models.native_code import host_features, openmp_parallel

WIDE_FEATURES = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512vnni"})
"""Features that vectors of 64 bytes need, by LLVM's names."""


def vector_bytes() -> int:
    """Returns the bytes of this machine's vectors with VNNI; 0 if it can't compile kernels or find torch's threads."""
    if not cpu_flags() & {"avx512_vnni", "avx_vnni"}:
        return 0
    try:
        features = host_features()
        width = 64 if features >= WIDE_FEATURES else 32 if "avxvnni" in features else 0
        return width if width and openmp_parallel() is not None else 0
    except (ImportError, OSError, RuntimeError):
        return 0


def float_vector_bytes() -> int:
    """Returns the bytes of the vectors that the kernels of 16-bit weights run on, or 0: see `vector_bytes`."""
    if "avx2" not in cpu_flags():
        return 0
    try:
        features = host_features()
        width = 64 if features >= WIDE_FEATURES else 32 if features >= {"avx2", "fma", "f16c"} else 0
        return width if width and openmp_parallel() is not None else 0
    except (ImportError, OSError, RuntimeError):
        return 0
