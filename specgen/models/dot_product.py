"""Writes products of unsigned weights and signed inputs in LLVM IR: bytes, four of which share a sum of 32 bits.

VNNI does this in one instruction. AVX2 adds two products in 16 bits first. So that these don't overflow, the largest
weight times the largest input is at most 16383: inputs of int8, or the values of nf4, have one bit less.
"""

from __future__ import annotations

from specgen.models.vector_code import CpuVectors

FULL_STEPS = 127
"""The largest whole number that a signed byte holds of either sign."""
SHORT_STEPS = 63
"""The largest one with a bit less."""
OFFSET = 128
"""What makes signed bytes unsigned."""
_PAIRS, _FOURS = "llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd"


def declarations(vectors: CpuVectors) -> list[str]:
    """Returns the declarations of the instructions that `add_products` calls."""
    sums, shorts, operand = _types(vectors)
    if vectors.has_vnni:
        return [f"declare {sums} @llvm.x86.avx512.vpdpbusd.{vectors.num_bytes * 8}({sums}, {sums}, {sums})"]
    return [
        f"declare {shorts} @{_PAIRS}({operand}, {operand})",
        f"declare {sums} @{_FOURS}({shorts}, {shorts})",
    ]


def add_products(name: str, total: str, weights: str, inputs: str, vectors: CpuVectors) -> list[str]:
    """Returns what computes `%name`: sums and the products of weights and inputs, all vectors of `i32`."""
    sums, shorts, operand = _types(vectors)
    if vectors.has_vnni:
        instruction = f"@llvm.x86.avx512.vpdpbusd.{vectors.num_bytes * 8}"
        return [f"  %{name} = call {sums} {instruction}({sums} {total}, {sums} {weights}, {sums} {inputs})"]
    ones = "<" + ", ".join(["i16 1"] * (2 * vectors.lanes)) + ">"
    return [
        f"  %{name}_weights = bitcast {sums} {weights} to {operand}",
        f"  %{name}_inputs = bitcast {sums} {inputs} to {operand}",
        f"  %{name}_pairs = call {shorts} @{_PAIRS}({operand} %{name}_weights, {operand} %{name}_inputs)",
        f"  %{name}_fours = call {sums} @{_FOURS}({shorts} %{name}_pairs, {shorts} {ones})",
        f"  %{name} = add {sums} {total}, %{name}_fours",
    ]


def _types(vectors: CpuVectors) -> tuple[str, str, str]:
    """Returns the types of vectors of sums, of sums of pairs, and of weights or inputs."""
    lanes = vectors.lanes
    return f"<{lanes} x i32>", f"<{2 * lanes} x i16>", f"<{4 * lanes} x i8>"
