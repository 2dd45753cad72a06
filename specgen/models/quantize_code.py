"""Writes the rounding of rows to int8 in LLVM IR."""

from __future__ import annotations

TINY_BITS = 0x04000000
"""Bits of 2 ** -119, as float32: the least value that the largest of a row is taken for."""
ROUNDER = 3 * 2**22
"""Added to a float32 between -127 and 127, it leaves the nearest whole number in the lowest bits."""
ROUNDER_BITS = 0x4B400000

_NUMBERS = "i64 %size, i64 %num_steps, i64 %greater, i64 %flip"
_DECLARATIONS = """
declare i32 @llvm.vector.reduce.add.v16i32(<16 x i32>)
declare i32 @llvm.vector.reduce.umax.v16i32(<16 x i32>)
declare <16 x i32> @llvm.umax.v16i32(<16 x i32>, <16 x i32>)
"""
_QUANTIZE_ROW = f"""
define internal void @quantize_row(ptr %in, ptr %out, ptr %scale_at, ptr %excess_at, {_NUMBERS}) {{
entry:
  %most = uitofp i64 %num_steps to float
  %greater_bits = trunc i64 %greater to i32
  %less = sub i32 0, %greater_bits
  %flip_byte = trunc i64 %flip to i8
  %flip_first = insertelement <16 x i8> poison, i8 %flip_byte, i32 0
  %flips = shufflevector <16 x i8> %flip_first, <16 x i8> poison, <16 x i32> zeroinitializer
  %mask_first = insertelement <16 x i32> poison, i32 {0x7FFFFFFF}, i32 0
  %all_but_signs = shufflevector <16 x i32> %mask_first, <16 x i32> poison, <16 x i32> zeroinitializer
  %rounder_first = insertelement <16 x float> poison, float {ROUNDER}.0, i32 0
  %rounders = shufflevector <16 x float> %rounder_first, <16 x float> poison, <16 x i32> zeroinitializer
  %rounder_bits_first = insertelement <16 x i32> poison, i32 {ROUNDER_BITS}, i32 0
  %rounder_bits = shufflevector <16 x i32> %rounder_bits_first, <16 x i32> poison, <16 x i32> zeroinitializer
  br label %find
find:
  %i = phi i64 [ 0, %entry ], [ %i_next, %find ]
  %largest = phi <16 x i32> [ zeroinitializer, %entry ], [ %larger, %find ]
  %at = getelementptr float, ptr %in, i64 %i
  %x = load <16 x float>, ptr %at, align 4
  %bits = bitcast <16 x float> %x to <16 x i32>
  %size_bits = and <16 x i32> %bits, %all_but_signs
  %larger = call <16 x i32> @llvm.umax.v16i32(<16 x i32> %largest, <16 x i32> %size_bits)
  %i_next = add i64 %i, 16
  %find_more = icmp ult i64 %i_next, %size
  br i1 %find_more, label %find, label %found
found:
  %max_bits = call i32 @llvm.vector.reduce.umax.v16i32(<16 x i32> %larger)
  %is_less = icmp ult i32 %max_bits, {TINY_BITS}
  %positive_bits = select i1 %is_less, i32 {TINY_BITS}, i32 %max_bits
  %positive = bitcast i32 %positive_bits to float
  %scale = fdiv float %positive, %most
  %factor = fdiv float %most, %positive
  %factor_first = insertelement <16 x float> poison, float %factor, i32 0
  %factors = shufflevector <16 x float> %factor_first, <16 x float> poison, <16 x i32> zeroinitializer
  br label %round
round:
  %j = phi i64 [ 0, %found ], [ %j_next, %round ]
  %sum = phi <16 x i32> [ zeroinitializer, %found ], [ %sum_next, %round ]
  %from = getelementptr float, ptr %in, i64 %j
  %y = load <16 x float>, ptr %from, align 4
  %scaled = fmul <16 x float> %y, %factors
  %shifted = fadd <16 x float> %scaled, %rounders
  %shifted_bits = bitcast <16 x float> %shifted to <16 x i32>
  %integers = sub <16 x i32> %shifted_bits, %rounder_bits
  %sum_next = add <16 x i32> %sum, %integers
  %bytes = trunc <16 x i32> %integers to <16 x i8>
  %flipped = xor <16 x i8> %bytes, %flips
  %to = getelementptr i8, ptr %out, i64 %j
  store <16 x i8> %flipped, ptr %to, align 1
  %j_next = add i64 %j, 16
  %round_more = icmp ult i64 %j_next, %size
  br i1 %round_more, label %round, label %exit
exit:
  %total = call i32 @llvm.vector.reduce.add.v16i32(<16 x i32> %sum_next)
  %excess = mul i32 %total, %less
  store i32 %excess, ptr %excess_at
  store float %scale, ptr %scale_at
  ret void
}}
"""
"""Rounds a row to int8. Its arguments are the addresses of the row, of its result, its scale and its excess; then those
of `RoundingKernels.quantize` from the number of columns on.

Without their signs, float32 are in the order of their bits, and what is not a number is the largest.
"""
QUANTIZE = f"""
{_DECLARATIONS}
{_QUANTIZE_ROW}
define void @quantize(ptr %rows, ptr %values, ptr %scales, ptr %excesses, i64 %num_rows, {_NUMBERS}) {{
entry:
  br label %row
row:
  %r = phi i64 [ 0, %entry ], [ %r_next, %row ]
  %offset = mul i64 %r, %size
  %in = getelementptr float, ptr %rows, i64 %offset
  %out = getelementptr i8, ptr %values, i64 %offset
  %scale_at = getelementptr float, ptr %scales, i64 %r
  %excess_at = getelementptr i32, ptr %excesses, i64 %r
  call void @quantize_row(ptr %in, ptr %out, ptr %scale_at, ptr %excess_at, {_NUMBERS})
  %r_next = add i64 %r, 1
  %row_more = icmp ult i64 %r_next, %num_rows
  br i1 %row_more, label %row, label %exit
exit:
  ret void
}}
"""
"""Rounds rows to int8: see `RoundingKernels.quantize`."""
