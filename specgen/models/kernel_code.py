"""Writes what the kernels of all weight formats have in common, in LLVM IR.

`run` lets rows go through a prologue and packs them by `pack_rows`: most formats round them to int8. Then all threads
run `multiply`, which claims outputs. A format's tiles compute them.
"""

from __future__ import annotations

from specgen.models.vector_code import ARGUMENTS, CLAIM, ON_THREADS, Tiles, load_arguments


def kernel_text(tiles: Tiles, prologues: str) -> str:
    """Returns the kernels of a format that rounds rows to int8, in LLVM IR.

    Args:
        tiles: The format's.
        prologues: As in `complete_text`.
    """
    declared = [
        "declare i32 @llvm.vector.reduce.add.v16i32(<16 x i32>)",
        "declare i32 @llvm.vector.reduce.umax.v16i32(<16 x i32>)",
        "declare <16 x i32> @llvm.umax.v16i32(<16 x i32>, <16 x i32>)",
    ]
    code = [*declared, QUANTIZE, _pack_rows(tiles), tiles.text, _multiply(tiles)]
    return complete_text("\n".join(code), prologues)


def complete_text(code: str, prologues: str) -> str:
    """Returns a format's kernels in LLVM IR.

    Args:
        code: The functions `pack_rows`, which gets the arguments and the rows after a prologue, and `multiply`, which
            gets the arguments.
        prologues: The function `prepared`, which returns the address of the rows after a prologue.
    """
    declaration = "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)"
    return "\n".join([declaration, EVEN_PART, prologues, code, ON_THREADS, _RUN])


EVEN_PART = """
define internal i64 @even_part(i64 %count, i64 %most) alwaysinline {
  %up = add i64 %count, %most
  %up_less = sub i64 %up, 1
  %num_parts = udiv i64 %up_less, %most
  %even = add i64 %count, %num_parts
  %even_less = sub i64 %even, 1
  %part = udiv i64 %even_less, %num_parts
  ret i64 %part
}
"""
"""Divides a number into parts of about the same size, of `%most` at most. The last one may be smaller."""


def call_tile(max_rows: int, arguments: str) -> str:
    """Returns what calls the tile of `%count` rows and goes to `next`."""
    numbers = range(1, max_rows + 1)
    cases = "\n".join(f"    i64 {number}, label %call{number}" for number in numbers)
    calls = "\n".join(f"call{number}:\n  call void @tile{number}({arguments})\n  br label %next" for number in numbers)
    return f"  switch i64 %count, label %exit [\n{cases}\n  ]\n{calls}"


TINY_BITS = 0x04000000
"""Bits of 2 ** -119, as float32: the least value that the largest of a row is taken for."""
ROUNDER = 3 * 2**22
"""Added to a float32 between -127 and 127, it leaves the nearest whole number in the lowest bits."""
ROUNDER_BITS = 0x4B400000

QUANTIZE = f"""
define void @quantize(ptr %rows, ptr %values, ptr %scales, ptr %excesses, i64 %num_rows, i64 %size,
                      i64 %num_steps, i64 %greater, i64 %flip) {{
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
  br label %row
row:
  %r = phi i64 [ 0, %entry ], [ %r_next, %store ]
  %offset = mul i64 %r, %size
  %in = getelementptr float, ptr %rows, i64 %offset
  %out = getelementptr i8, ptr %values, i64 %offset
  br label %find
find:
  %i = phi i64 [ 0, %row ], [ %i_next, %find ]
  %largest = phi <16 x i32> [ zeroinitializer, %row ], [ %larger, %find ]
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
  br i1 %round_more, label %round, label %store
store:
  %total = call i32 @llvm.vector.reduce.add.v16i32(<16 x i32> %sum_next)
  %excess = mul i32 %total, %less
  %excess_at = getelementptr i32, ptr %excesses, i64 %r
  store i32 %excess, ptr %excess_at
  %scale_at = getelementptr float, ptr %scales, i64 %r
  store float %scale, ptr %scale_at
  %r_next = add i64 %r, 1
  %row_more = icmp ult i64 %r_next, %num_rows
  br i1 %row_more, label %row, label %exit
exit:
  ret void
}}
"""
"""Without their signs, float32 are in the order of their bits, and what is not a number is the largest."""


_RUN = """
define void @run(ptr %arguments, ptr %inputs, ptr %parallel, i64 %num_threads) {
  %prepared = call ptr @prepared(ptr %arguments, ptr %inputs)
  call void @pack_rows(ptr %arguments, ptr %prepared)
  call void @on_threads(ptr @multiply, ptr %arguments, ptr %parallel, i64 %num_threads)
  ret void
}
"""
"""The function that is called: it prepares the rows and lets all threads multiply."""


def _pack_rows(tiles: Tiles) -> str:
    """Returns the function that rounds the rows; each has so many blocks as it has scales."""
    loads = "\n".join(load_arguments(ARGUMENTS, ("rows", "row_scales", "excesses", "size", "num_rows", "num_scales")))
    return f"""
define internal void @pack_rows(ptr %arguments, ptr %prepared) {{
entry:
{loads}
  %num_blocks = mul i64 %num_rows, %num_scales
  %block = udiv i64 %size, %num_scales
  call void @quantize(ptr %prepared, ptr %rows, ptr %row_scales, ptr %excesses, i64 %num_blocks, i64 %block,
                      i64 {tiles.input_steps}, i64 {tiles.weight_offset}, i64 0)
  ret void
}}
"""


def _multiply(tiles: Tiles) -> str:
    """Returns the function that runs on each thread: it claims outputs until none are left.

    Rows that are too many for one tile are computed in groups. Where the format has it so, a few groups compute the
    same outputs before the next ones: the weights are in the nearest cache, and the following ones come from memory.
    Otherwise each group computes the whole chunk, which stays in a cache.
    """
    names = [name for name in ARGUMENTS if name not in ("prologue", "prepared", "norm_weight", "epsilon", "counter")]
    lines = ["define void @multiply(ptr %arguments) {", "entry:", *load_arguments(ARGUMENTS, names)]
    fixed = "ptr %values, ptr %weight_scales, ptr %bias"
    moved = "ptr %rows_here, ptr %row_scales_here, ptr %excesses_here, ptr %outputs_here"
    some = "i64 %num_outputs, i64 %size, i64 %first, i64 %last, i64 %share, i64 %num_shares"
    compute = call_tile(tiles.max_rows, f"{fixed}, {moved}, {some}")
    return (
        "\n".join(lines)
        + f"""
  %counter = getelementptr i64, ptr %arguments, i64 {list(ARGUMENTS).index("counter")}
  %num_rows_up = add i64 %num_rows, {tiles.max_rows - 1}
  %num_parts = udiv i64 %num_rows_up, {tiles.max_rows}
  %group = call i64 @even_part(i64 %num_rows, i64 {tiles.max_rows})
  %is_several = icmp ugt i64 %num_parts, 1
  %is_few = icmp ule i64 %num_parts, {tiles.max_parts}
  %in_turn = and i1 %is_several, %is_few
  %step = select i1 %in_turn, i64 {tiles.num_outputs}, i64 %chunk
  %num_shares = select i1 %in_turn, i64 %num_parts, i64 1
  br label %claim
{CLAIM}
  br label %outputs_loop
outputs_loop:
  %first = phi i64 [ %start, %take ], [ %following, %rows_end ]
  %following = add i64 %first, %step
  %is_full = icmp ult i64 %following, %limit
  %last = select i1 %is_full, i64 %following, i64 %limit
  br label %rows_loop
rows_loop:
  %row = phi i64 [ 0, %outputs_loop ], [ %row_next, %next ]
  %part = phi i64 [ 0, %outputs_loop ], [ %part_next, %next ]
  %share = select i1 %in_turn, i64 %part, i64 0
  %left = sub i64 %num_rows, %row
  %is_part = icmp ult i64 %left, %group
  %count = select i1 %is_part, i64 %left, i64 %group
  %rows_offset = mul i64 %row, %size
  %rows_here = getelementptr i8, ptr %rows, i64 %rows_offset
  %scales_offset = mul i64 %row, %num_scales
  %row_scales_here = getelementptr float, ptr %row_scales, i64 %scales_offset
  %excesses_here = getelementptr i32, ptr %excesses, i64 %scales_offset
  %outputs_offset = mul i64 %row, %num_outputs
  %outputs_here = getelementptr float, ptr %outputs, i64 %outputs_offset
{compute}
next:
  %part_next = add i64 %part, 1
  %row_next = add i64 %row, %count
  %is_more = icmp ult i64 %row_next, %num_rows
  br i1 %is_more, label %rows_loop, label %rows_end
rows_end:
  br i1 %is_full, label %outputs_loop, label %claim
exit:
  ret void
}}
"""
    )
