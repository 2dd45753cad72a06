"""Writes nf4 weights as the kernels read them, in LLVM IR.

A weight is a sequence of records: for each group of outputs, for each block of inputs, its values and its scales. A
vector of values holds two times four inputs of each output of the group, in the low and the high halves of its bytes.
"""

from __future__ import annotations

from itertools import pairwise

from specgen.models.vector_code import CpuVectors

BLOCK = 64
"""Inputs that share a scale, as in bitsandbytes."""
VECTORS_OF_BLOCK = range(BLOCK // 8)
LEVELS = (-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127)
"""The values of nf4 (Dettmers et al. 2023, arXiv:2305.14314, appendix E), in steps of 1/127."""


def record_bytes(vectors: CpuVectors) -> int:
    """Returns the bytes of a record: `BLOCK` inputs of a group in 4 bits each, and scales in bfloat16."""
    return len(VECTORS_OF_BLOCK) * vectors.num_bytes + 2 * vectors.lanes


def constants(kind: str, values: list[int]) -> str:
    """Returns a vector of constants."""
    return "<" + ", ".join(f"{kind} {value}" for value in values) + ">"


def pack_code(vectors: CpuVectors, offset: int) -> str:
    """Returns the function `pack`, which writes records.

    Its arguments are the addresses of the values of a group, `[outputs, inputs]` in bytes that are greater by `offset`,
    of their scales in bfloat16 `[outputs, blocks]`, and of the records; then the number of blocks.
    """
    width, lanes = vectors.num_bytes, vectors.lanes
    bounds = [(low + high) // 2 + offset for low, high in pairwise(LEVELS)]
    lines = []
    code = "zeroinitializer"
    for index, bound in enumerate(bounds):
        lines += [
            f"  %is{index} = icmp ugt <{BLOCK} x i8> %values64, {constants('i8', [bound] * BLOCK)}",
            f"  %one{index} = zext <{BLOCK} x i1> %is{index} to <{BLOCK} x i8>",
            f"  %code{index} = add <{BLOCK} x i8> {code}, %one{index}",
        ]
        code = f"%code{index}"
    fours = BLOCK // 4
    for half, first in (("low", 0), ("high", 1)):
        picked = constants("i32", list(range(first, fours, 2)))
        lines.append(
            f"  %{half} = shufflevector <{fours} x i32> %fours, <{fours} x i32> poison, <{fours // 2} x i32> {picked}"
        )
    stores = []
    for vector in VECTORS_OF_BLOCK:
        stores += [
            f"  %word{vector} = extractelement <{fours // 2} x i32> %words, i32 {vector}",
            f"  %word_at{vector} = getelementptr i8, ptr %place, i64 {vector * width}",
            f"  store i32 %word{vector}, ptr %word_at{vector}, align 2",
        ]
    classified, stored = "\n".join(lines[: 3 * len(bounds)]), "\n".join(stores)
    halves = "\n".join(lines[3 * len(bounds) :])
    return f"""
define void @pack(ptr %values, ptr %scales, ptr %records, i64 %num_blocks) {{
entry:
  br label %blocks
blocks:
  %block = phi i64 [ 0, %entry ], [ %block_next, %block_end ]
  %record_offset = mul i64 %block, {record_bytes(vectors)}
  %record = getelementptr i8, ptr %records, i64 %record_offset
  %scales_here = getelementptr i8, ptr %record, i64 {len(VECTORS_OF_BLOCK) * width}
  br label %outputs
outputs:
  %output = phi i64 [ 0, %blocks ], [ %output_next, %outputs ]
  %row = mul i64 %output, %num_blocks
  %index = add i64 %row, %block
  %from = getelementptr <{BLOCK} x i8>, ptr %values, i64 %index
  %values64 = load <{BLOCK} x i8>, ptr %from, align 1
{classified}
  %fours = bitcast <{BLOCK} x i8> {code} to <{fours} x i32>
{halves}
  %high_moved = shl <{fours // 2} x i32> %high, {constants("i32", [4] * (fours // 2))}
  %words = or <{fours // 2} x i32> %low, %high_moved
  %place = getelementptr i32, ptr %record, i64 %output
{stored}
  %scale_from = getelementptr i16, ptr %scales, i64 %index
  %scale = load i16, ptr %scale_from, align 2
  %scale_to = getelementptr i16, ptr %scales_here, i64 %output
  store i16 %scale, ptr %scale_to, align 2
  %output_next = add i64 %output, 1
  %outputs_more = icmp ult i64 %output_next, {lanes}
  br i1 %outputs_more, label %outputs, label %block_end
block_end:
  %block_next = add i64 %block, 1
  %blocks_more = icmp ult i64 %block_next, %num_blocks
  br i1 %blocks_more, label %blocks, label %exit
exit:
  ret void
}}
"""
