"""Writes the kernels for weights in bfloat16 or float16 in LLVM IR. The rows, the products and the sums are float32.

Each block of outputs goes through the inputs block by block, so that the rows' inputs stay in a near cache. Within a
block, all groups of rows multiply the same few outputs in turn, so that their weights stay in the nearest cache. The
sums are kept in memory from one block of inputs to the next.
"""

from __future__ import annotations

import torch

from specgen.models.float_rows import BLOCK_OUTPUTS, BLOCK_ROWS, INPUTS_UNIT, pack_inputs
from specgen.models.float_tiles import MAX_ROWS, NUM_OUTPUTS, finish, float_tiles
from specgen.models.job_code import Job
from specgen.models.thread_code import CLAIM_LOOP
from specgen.models.vector_code import ARGUMENTS, call_tile, load_arguments

PACKING = Job("multiply_rows", pack_inputs="pack_inputs")
"""What threads do for weights in 16 bits."""
BLOCK_INPUTS = 640
"""Inputs of a block, at most. The second cache holds these of all rows, 60 KiB of 24, and as many weights that are
requested ahead."""


def float_code(width: int, dtype: torch.dtype) -> str:
    """Returns the code that `complete_text` takes, for vectors of `width` bytes and weights of a type."""
    tiles = [float_tiles(width, dtype), finish(width, BLOCK_OUTPUTS)]
    return "\n".join([pack_inputs(width, MAX_ROWS[width]), *tiles, _add_block(width), _multiply(width)])


def _add_block(width: int) -> str:
    """Returns the function that adds the products of a block of outputs and a block of rows to their sums.

    Memory is never idle: each tile requests the weights that are used after this block of outputs and inputs, and the
    groups of rows share these requests.
    """
    weights, sums = "ptr %weights_here, i64 %row_bytes", "ptr %sums_here, i64 %sums_bytes"
    numbers = "i64 %num_inputs, i64 %ahead_here, i64 %ahead_step"
    compute = call_tile(MAX_ROWS[width], f"{weights}, ptr %rows_here, {sums}, {numbers}")
    return f"""
define internal void @add_block(ptr %weights, ptr %rows, ptr %sums, i64 %size, i64 %num_rows, i1 %requests) {{
entry:
  %row_bytes = mul i64 %size, 2
  %outputs_bytes = mul i64 %row_bytes, {BLOCK_OUTPUTS}
  %sums_bytes = mul i64 %num_rows, {width}
  %group = call i64 @even_part(i64 %num_rows, i64 {MAX_ROWS[width]})
  %num_units = udiv i64 %size, {INPUTS_UNIT}
  %block_units = call i64 @even_part(i64 %num_units, i64 {BLOCK_INPUTS // INPUTS_UNIT})
  %block_inputs = mul i64 %block_units, {INPUTS_UNIT}
  %block_bytes = mul i64 %block_inputs, 2
  %step_scaled = mul i64 %group, {width}
  %step_up = add i64 %step_scaled, %num_rows
  %step_less = sub i64 %step_up, 1
  %step = udiv i64 %step_less, %num_rows
  %ahead_step = select i1 %requests, i64 %step, i64 0
  br label %input_loop
input_loop:
  %input = phi i64 [ 0, %entry ], [ %input_next, %input_end ]
  %left = sub i64 %size, %input
  %is_last = icmp ule i64 %left, %block_inputs
  %num_inputs = select i1 %is_last, i64 %left, i64 %block_inputs
  %num_input_bytes = mul i64 %num_inputs, 2
  %input_bytes = mul i64 %input, 2
  %input_weights = getelementptr i8, ptr %weights, i64 %input_bytes
  %outputs_ahead = sub i64 %outputs_bytes, %input_bytes
  %ahead = select i1 %is_last, i64 %outputs_ahead, i64 %block_bytes
  br label %output_loop
output_loop:
  %output = phi i64 [ 0, %input_loop ], [ %output_next, %output_end ]
  %output_offset = mul i64 %output, %row_bytes
  %weights_here = getelementptr i8, ptr %input_weights, i64 %output_offset
  %output_sums_offset = mul i64 %output, %sums_bytes
  %output_sums = getelementptr i8, ptr %sums, i64 %output_sums_offset
  br label %row_loop
row_loop:
  %row = phi i64 [ 0, %output_loop ], [ %row_next, %next ]
  %rows_left = sub i64 %num_rows, %row
  %is_rest = icmp ult i64 %rows_left, %group
  %count = select i1 %is_rest, i64 %rows_left, i64 %group
  %row_offset = mul i64 %row, %size
  %input_offset = mul i64 %input, %count
  %rows_offset = add i64 %row_offset, %input_offset
  %rows_here = getelementptr float, ptr %rows, i64 %rows_offset
  %sums_offset = mul i64 %row, {width}
  %sums_here = getelementptr i8, ptr %output_sums, i64 %sums_offset
  %share_scaled = mul i64 %num_input_bytes, %row
  %share = udiv i64 %share_scaled, %num_rows
  %ahead_own = add i64 %ahead, %share
  %ahead_here = select i1 %requests, i64 %ahead_own, i64 0
{compute}
next:
  %row_next = add i64 %row, %count
  %row_more = icmp ult i64 %row_next, %num_rows
  br i1 %row_more, label %row_loop, label %output_end
output_end:
  %output_next = add i64 %output, {NUM_OUTPUTS}
  %output_more = icmp ult i64 %output_next, {BLOCK_OUTPUTS}
  br i1 %output_more, label %output_loop, label %input_end
input_end:
  %input_next = add i64 %input, %num_inputs
  %input_more = icmp ult i64 %input_next, %size
  br i1 %input_more, label %input_loop, label %exit
exit:
  ret void
}}
"""


def _multiply(width: int) -> str:
    """Returns the function that runs on each thread: it claims outputs until none are left.

    If the number of outputs is not a multiple of a block's, the last block is moved back, and some are computed twice.
    """
    names = ("values", "bias", "rows", "outputs", "num_outputs", "size", "num_rows", "chunk", "unit", "num_threads")
    loads = "\n".join(load_arguments(ARGUMENTS, names))
    return f"""
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
define void @multiply_rows(ptr %arguments) {{
entry:
  %sums = alloca [{BLOCK_OUTPUTS * BLOCK_ROWS * width} x i8], align 64
  %end = alloca i64
{loads}
  %counter = getelementptr i64, ptr %arguments, i64 {list(ARGUMENTS).index("counter")}
  %block_rows = call i64 @even_part(i64 %num_rows, i64 {BLOCK_ROWS})
  %last_block = sub i64 %num_outputs, {BLOCK_OUTPUTS}
  br label %claim
{CLAIM_LOOP}
  br label %row_loop
row_loop:
  %row = phi i64 [ 0, %take ], [ %row_next, %row_end ]
  %left = sub i64 %num_rows, %row
  %is_rest = icmp ult i64 %left, %block_rows
  %count = select i1 %is_rest, i64 %left, i64 %block_rows
  %num_sums = mul i64 %count, {BLOCK_OUTPUTS}
  %sums_bytes = mul i64 %num_sums, {width}
  %row_offset = mul i64 %row, %size
  %rows_here = getelementptr float, ptr %rows, i64 %row_offset
  %outputs_offset = mul i64 %row, %num_outputs
  %outputs_of_rows = getelementptr float, ptr %outputs, i64 %outputs_offset
  %is_first = icmp eq i64 %row, 0
  br label %output_loop
output_loop:
  %wanted = phi i64 [ %start, %row_loop ], [ %wanted_next, %output_loop ]
  %is_last = icmp ugt i64 %wanted, %last_block
  %output = select i1 %is_last, i64 %last_block, i64 %wanted
  %output_offset = mul i64 %output, %size
  %weights = getelementptr i16, ptr %values, i64 %output_offset
  call void @llvm.memset.p0.i64(ptr align 64 %sums, i8 0, i64 %sums_bytes, i1 false)
  call void @add_block(ptr %weights, ptr %rows_here, ptr %sums, i64 %size, i64 %count, i1 %is_first)
  %output_bias = getelementptr float, ptr %bias, i64 %output
  %outputs_here = getelementptr float, ptr %outputs_of_rows, i64 %output
  call void @finish(ptr %sums, ptr %output_bias, ptr %outputs_here, i64 %num_outputs, i64 %count)
  %wanted_next = add i64 %wanted, {BLOCK_OUTPUTS}
  %output_more = icmp ult i64 %wanted_next, %limit
  br i1 %output_more, label %output_loop, label %row_end
row_end:
  %row_next = add i64 %row, %count
  %row_more = icmp ult i64 %row_next, %num_rows
  br i1 %row_more, label %row_loop, label %claim
exit:
  ret void
}}
"""
