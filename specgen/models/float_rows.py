"""Divides products by 16-bit weights into blocks, and writes the division and the order of rows in LLVM IR."""

from __future__ import annotations

from specgen.models.vector_code import ARGUMENTS, load_arguments

BLOCK_OUTPUTS = 12
"""Outputs of a block: whole tiles, and whole vectors of four."""
INPUTS_UNIT = 32
"""Inputs are a multiple of it, of a weight and of a block: the widest tile reads 64 bytes of a weight at once."""
BLOCK_ROWS = 24
"""Rows of a block, at most: each block reads the weights again, from the second cache."""


def pack_inputs(width: int, max_rows: int) -> str:
    """Returns the function that copies rows to the order in which tiles read them: a vector of each row of a group.

    A single row stays where it is.

    Args:
        width: Bytes of a vector.
        max_rows: Rows of a group, at most.
    """
    lanes = width // 4
    floats = f"<{lanes} x float>"
    loads = "\n".join(load_arguments(ARGUMENTS, ("rows", "size", "num_rows")))
    return f"""
define internal void @pack_inputs(ptr %arguments, ptr %prepared, i64 %first, i64 %last) {{
entry:
{loads}
  %block_rows = call i64 @even_part(i64 %num_rows, i64 {BLOCK_ROWS})
  %is_one = icmp eq i64 %num_rows, 1
  br i1 %is_one, label %one, label %row_loop
one:
  store ptr %prepared, ptr %rows_at
  ret void
row_loop:
  %row = phi i64 [ 0, %entry ], [ %row_next, %row_end ]
  %in_block = urem i64 %row, %block_rows
  %block = sub i64 %row, %in_block
  %left = sub i64 %num_rows, %block
  %is_last_block = icmp ult i64 %left, %block_rows
  %block_size = select i1 %is_last_block, i64 %left, i64 %block_rows
  %group_size = call i64 @even_part(i64 %block_size, i64 {max_rows})
  %in_group = urem i64 %in_block, %group_size
  %group_in_block = sub i64 %in_block, %in_group
  %group_left = sub i64 %block_size, %group_in_block
  %is_last_group = icmp ult i64 %group_left, %group_size
  %count = select i1 %is_last_group, i64 %group_left, i64 %group_size
  %row_offset = mul i64 %row, %size
  %from = getelementptr float, ptr %prepared, i64 %row_offset
  %group = sub i64 %row, %in_group
  %group_offset = mul i64 %group, %size
  %group_at = getelementptr float, ptr %rows, i64 %group_offset
  %to = getelementptr {floats}, ptr %group_at, i64 %in_group
  br label %input_loop
input_loop:
  %i = phi i64 [ %first, %row_loop ], [ %i_next, %input_loop ]
  %from_at = getelementptr float, ptr %from, i64 %i
  %values = load {floats}, ptr %from_at, align 4
  %to_offset = mul i64 %i, %count
  %to_at = getelementptr float, ptr %to, i64 %to_offset
  store {floats} %values, ptr %to_at, align 4
  %i_next = add i64 %i, {lanes}
  %input_more = icmp ult i64 %i_next, %last
  br i1 %input_more, label %input_loop, label %row_end
row_end:
  %row_next = add i64 %row, 1
  %row_more = icmp ult i64 %row_next, %num_rows
  br i1 %row_more, label %row_loop, label %exit
exit:
  ret void
}}
"""
