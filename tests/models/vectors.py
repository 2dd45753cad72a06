"""Kinds of vectors for tests of our own kernels. Those that this machine lacks are skipped."""

from __future__ import annotations

from functools import cache

import pytest

from specgen.core.machine import cpu_flags
from specgen.models import kernels
from specgen.models.vector_code import CpuVectors

# Half a second each: once for all sizes of weights.
compile_kernels = cache(kernels.compile_kernels)
compile_float_kernels = cache(kernels.compile_float_kernels)


def _needs(vectors: CpuVectors, is_there: bool, name: str) -> object:
    return pytest.param(vectors, marks=pytest.mark.skipif(not is_there, reason=f"needs {name}"), id=name)


ALL_VECTORS = [
    _needs(CpuVectors(64), "avx512_vnni" in cpu_flags(), "AVX512-VNNI"),
    # The instructions of 32 bytes are the same with AVX512-VL.
    _needs(CpuVectors(32), bool({"avx_vnni", "avx512_vnni"} & cpu_flags()), "AVX-VNNI"),
    _needs(CpuVectors(32, has_vnni=False), "avx2" in cpu_flags(), "AVX2"),
]
