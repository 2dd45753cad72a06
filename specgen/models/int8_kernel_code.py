"""Writes the int8 kernels in LLVM IR.

`quantize` rounds rows to int8. `multiply` runs on each thread and claims outputs; tiles compute
them.
"""

from __future__ import annotations

from specgen.models.int8_tiles import MAX_ROWS, load, tile

CHUNK_OUTPUTS = 16
"""Outputs that a thread claims at once. The second group of rows finds their weights in a cache."""


def kernel_text(width: int) -> str:
    """Returns the kernels in LLVM IR, for vectors of `width` bytes."""
    lanes = width // 4
    vector = f"<{lanes} x i32>"
    declarations = [
        f"declare {vector} @llvm.x86.avx512.vpdpbusd.{width * 8}({vector}, {vector}, {vector})",
        "declare i32 @llvm.vector.reduce.add.v16i32(<16 x i32>)",
        "declare float @llvm.vector.reduce.fmaximum.v16f32(<16 x float>)",
        "declare <16 x float> @llvm.maximum.v16f32(<16 x float>, <16 x float>)",
        "declare <16 x float> @llvm.fabs.v16f32(<16 x float>)",
        "declare <16 x float> @llvm.rint.v16f32(<16 x float>)",
        "declare <16 x i32> @llvm.fptosi.sat.v16i32.v16f32(<16 x float>)",
        "declare float @llvm.maximum.f32(float, float)",
        "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)",
    ]
    tiles = [tile(num_rows, width) for num_rows in range(1, MAX_ROWS[width] + 1)]
    return "\n".join([*declarations, QUANTIZE, *tiles, _multiply(MAX_ROWS[width])])


QUANTIZE = """
define void @quantize(ptr %rows, ptr %values, ptr %scales, ptr %sums, i64 %num_rows, i64 %size, i64 %flip) {
entry:
  %flip_byte = trunc i64 %flip to i8
  %flip_first = insertelement <16 x i8> poison, i8 %flip_byte, i32 0
  %flips = shufflevector <16 x i8> %flip_first, <16 x i8> poison, <16 x i32> zeroinitializer
  br label %row
row:
  %r = phi i64 [ 0, %entry ], [ %r_next, %store ]
  %offset = mul i64 %r, %size
  %in = getelementptr float, ptr %rows, i64 %offset
  %out = getelementptr i8, ptr %values, i64 %offset
  br label %find
find:
  %i = phi i64 [ 0, %row ], [ %i_next, %find ]
  %largest = phi <16 x float> [ zeroinitializer, %row ], [ %larger, %find ]
  %at = getelementptr float, ptr %in, i64 %i
  %x = load <16 x float>, ptr %at, align 4
  %size_of = call <16 x float> @llvm.fabs.v16f32(<16 x float> %x)
  %larger = call <16 x float> @llvm.maximum.v16f32(<16 x float> %largest, <16 x float> %size_of)
  %i_next = add i64 %i, 16
  %find_more = icmp ult i64 %i_next, %size
  br i1 %find_more, label %find, label %found
found:
  %max = call float @llvm.vector.reduce.fmaximum.v16f32(<16 x float> %larger)
  %positive = call float @llvm.maximum.f32(float %max, float 0x3880000000000000)
  %scale = fdiv float %positive, 1.270000e+02
  %factor = fdiv float 1.270000e+02, %positive
  %factor_first = insertelement <16 x float> poison, float %factor, i32 0
  %factors = shufflevector <16 x float> %factor_first, <16 x float> poison, <16 x i32> zeroinitializer
  br label %round
round:
  %j = phi i64 [ 0, %found ], [ %j_next, %round ]
  %sum = phi <16 x i32> [ zeroinitializer, %found ], [ %sum_next, %round ]
  %from = getelementptr float, ptr %in, i64 %j
  %y = load <16 x float>, ptr %from, align 4
  %scaled = fmul <16 x float> %y, %factors
  %rounded = call <16 x float> @llvm.rint.v16f32(<16 x float> %scaled)
  %integers = call <16 x i32> @llvm.fptosi.sat.v16i32.v16f32(<16 x float> %rounded)
  %sum_next = add <16 x i32> %sum, %integers
  %bytes = trunc <16 x i32> %integers to <16 x i8>
  %flipped = xor <16 x i8> %bytes, %flips
  %to = getelementptr i8, ptr %out, i64 %j
  store <16 x i8> %flipped, ptr %to, align 1
  %j_next = add i64 %j, 16
  %round_more = icmp ult i64 %j_next, %size
  br i1 %round_more, label %round, label %store
store:
  %total = call i32 @llvm.vector.reduce.add.v16i32(<16 x i32> %sum_next)
  %total_at = getelementptr i32, ptr %sums, i64 %r
  store i32 %total, ptr %total_at
  %scale_at = getelementptr float, ptr %scales, i64 %r
  store float %scale, ptr %scale_at
  %r_next = add i64 %r, 1
  %row_more = icmp ult i64 %r_next, %num_rows
  br i1 %row_more, label %row, label %exit
exit:
  ret void
}
"""


def _multiply(max_rows: int) -> str:
    """Returns the function that runs on each thread: it claims outputs until none are left."""
    names = ["values", "weight_scales", "bias", "rows", "row_scales", "row_sums", "outputs"]
    lines = ["define void @multiply(ptr %arguments) {", "entry:"]
    for index, name in enumerate(names):
        lines += load(name, "ptr", "arguments", "ptr", str(index))
    for index, name in enumerate(["num_outputs", "size", "num_rows"], len(names)):
        lines += load(name, "i64", "arguments", "i64", str(index))
    fixed = "ptr %values, ptr %weight_scales, ptr %bias"
    moved = "ptr %rows_here, ptr %row_scales_here, ptr %row_sums_here, ptr %outputs_here"
    cases = "\n".join(f"    i64 {number}, label %call{number}" for number in range(1, max_rows + 1))
    calls = "\n".join(
        f"call{number}:\n"
        f"  call void @tile{number}({fixed}, {moved}, i64 %num_outputs, i64 %size, i64 %first, i64 %last)\n"
        f"  br label %next"
        for number in range(1, max_rows + 1)
    )
    return (
        "\n".join(lines)
        + f"""
  %counter = getelementptr i64, ptr %arguments, i64 {len(names) + 3}
  %num_rows_up = add i64 %num_rows, {max_rows - 1}
  %num_groups = udiv i64 %num_rows_up, {max_rows}
  %num_rows_more = add i64 %num_rows, %num_groups
  %num_rows_most = sub i64 %num_rows_more, 1
  %group = udiv i64 %num_rows_most, %num_groups
  br label %claim
claim:
  %first = atomicrmw add ptr %counter, i64 {CHUNK_OUTPUTS} monotonic
  %is_any = icmp ult i64 %first, %num_outputs
  br i1 %is_any, label %take, label %exit
take:
  %end = add i64 %first, {CHUNK_OUTPUTS}
  %is_end = icmp ult i64 %end, %num_outputs
  %last = select i1 %is_end, i64 %end, i64 %num_outputs
  br label %rows_loop
rows_loop:
  %row = phi i64 [ 0, %take ], [ %row_next, %next ]
  %left = sub i64 %num_rows, %row
  %is_part = icmp ult i64 %left, %group
  %count = select i1 %is_part, i64 %left, i64 %group
  %rows_offset = mul i64 %row, %size
  %rows_here = getelementptr i8, ptr %rows, i64 %rows_offset
  %row_scales_here = getelementptr float, ptr %row_scales, i64 %row
  %row_sums_here = getelementptr i32, ptr %row_sums, i64 %row
  %outputs_offset = mul i64 %row, %num_outputs
  %outputs_here = getelementptr float, ptr %outputs, i64 %outputs_offset
  switch i64 %count, label %exit [
{cases}
  ]
{calls}
next:
  %row_next = add i64 %row, %count
  %is_more = icmp ult i64 %row_next, %num_rows
  br i1 %is_more, label %rows_loop, label %claim
exit:
  ret void
}}
"""
    )
