"""Writes products of int8 and bfloat16 weights on AMX in LLVM IR: 32 outputs of up to 32 rows at once.

One register has the weights of 16 outputs in its lines, as they are stored, and another one the inputs of up to 16
rows in its columns. Weights are read once for up to 32 rows; for more, they come from a cache again. A column does not
depend on the others, so a row's result is the same in each pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from specgen.models.amx_registers import (
    AMX_LINES,
    AMX_OUTPUTS,
    LINE_BYTES,
    REGISTER_BYTES,
    RELEASE,
    amx_declarations,
    shape_registers,
)
from specgen.models.thread_code import CLAIM_ARGUMENTS
from specgen.models.vector_code import ARGUMENTS, load_arguments

AHEAD_BYTES = 256
"""How far ahead of its use a line of each output is requested from memory, into the second cache. 256 was the fastest
of 256 to 2,048 on an Intel Xeon (model 207)."""
_WEIGHTS, _COLUMNS = 4, 6
"""The first of two registers of weights, and of columns. Those before them hold sums."""


@dataclass(frozen=True, slots=True)
class AmxFormat:
    """What a weight format adds.

    Args:
        product: Name of the instruction that multiplies.
        value_bytes: Bytes of a weight.
        num_terms: Terms that an input is the sum of. Each is multiplied by the weight.
        text: In LLVM IR: `pack_columns`, a `Job.pack_inputs`; `finish_row`, which gets the arguments, the address of
            the sums of `AMX_LINES` outputs, the first output and the row, and stores the outputs.
    """

    product: str
    value_bytes: int
    num_terms: int
    text: str


def columns_code(amx: AmxFormat) -> str:
    """Returns `multiply_columns`, which gets the address of the arguments, and a format's `pack_columns`.

    Rows are packed in groups of the same size. For each 64 bytes of a weight and each term of the inputs, a group has a
    register: 16 lines with four bytes of each row.
    """
    blocks = [_block(amx, num_groups) for num_groups in (1, 2)]
    return "\n".join([amx_declarations(amx.product), amx.text, *blocks, _multiply(amx)])


def _block(amx: AmxFormat, num_groups: int) -> str:
    """Returns a function that computes a block of outputs of one or two groups of rows.

    Its arguments are the address of the weights and the bytes of an output's; the address of the columns, the bytes of
    a line of them and of a group's; where the sums are stored, for each group two registers, with 16 outputs of each
    row in a line; and the bytes from this block's weights to those of the next one.
    """
    groups, halves = range(num_groups), range(2)
    sums = {(group, half): 2 * group + half for group in groups for half in halves}
    columns = "ptr %columns, i64 %line_bytes, i64 %group_bytes"
    lines = [
        f"define internal void @block{num_groups}(ptr %weights, i64 %row_bytes, {columns}, ptr %sums, i64 %next) {{",
        "entry:",
        f"  %half_bytes = mul i64 %row_bytes, {AMX_LINES}",
        f"  %register_bytes = mul i64 %line_bytes, {AMX_LINES}",
        f"  %step_bytes = mul i64 %register_bytes, {amx.num_terms}",
        *[f"  call void @llvm.x86.tilezero(i8 {register})" for register in sums.values()],
        "  br label %inputs_loop",
        "inputs_loop:",
        "  %i = phi i64 [ 0, %entry ], [ %i_next, %inputs_loop ]",
        "  %columns0 = phi ptr [ %columns, %entry ], [ %columns_next, %inputs_loop ]",
        *[f"  %columns{group} = getelementptr i8, ptr %columns0, i64 %group_bytes" for group in groups[1:]],
        *_requests(),
        "  %here0 = getelementptr i8, ptr %weights, i64 %i",
        "  %here1 = getelementptr i8, ptr %here0, i64 %half_bytes",
        *[f"  call void @llvm.x86.tileloadd64(i8 {_WEIGHTS + h}, ptr %here{h}, i64 %row_bytes)" for h in halves],
    ]
    for term in range(amx.num_terms):
        lines.append(f"  %term{term} = mul i64 %register_bytes, {term}")
        for group in groups:
            name, register = f"term{term}_{group}", _COLUMNS + group
            lines += [
                f"  %{name} = getelementptr i8, ptr %columns{group}, i64 %term{term}",
                f"  call void @llvm.x86.tileloadd64(i8 {register}, ptr %{name}, i64 %line_bytes)",
                *[f"  call void @{amx.product}(i8 {sums[group, h]}, i8 {_WEIGHTS + h}, i8 {register})" for h in halves],
            ]
    lines += [
        "  %columns_next = getelementptr i8, ptr %columns0, i64 %step_bytes",
        f"  %i_next = add i64 %i, {LINE_BYTES}",
        "  %is_more = icmp ult i64 %i_next, %row_bytes",
        "  br i1 %is_more, label %inputs_loop, label %exit",
        "exit:",
        "  %is_one = icmp eq i64 %line_bytes, 4",
        f"  %stride = select i1 %is_one, i64 4, i64 {LINE_BYTES}",
    ]
    for register in sums.values():
        lines += [
            f"  %sums{register} = getelementptr i8, ptr %sums, i64 {register * REGISTER_BYTES}",
            f"  call void @llvm.x86.tilestored64(i8 {register}, ptr %sums{register}, i64 %stride)",
        ]
    lines += ["  br i1 %is_one, label %done, label %turn", "turn:"]
    for register in sums.values():
        memory = f"ptr %sums{register}, i64 {LINE_BYTES}"
        lines.append(f"  call void @transpose({memory}, {memory})")
    return "\n".join([*lines, "  br label %done", "done:", "  ret void", "}"])


def _requests() -> list[str]:
    """Returns what requests 64 bytes of each output's weights, `AHEAD_BYTES` ahead; at the end, of the next outputs."""
    following = [f"  %line{o} = getelementptr i8, ptr %line{o - 1}, i64 %row_bytes" for o in range(1, AMX_OUTPUTS)]
    requests = [f"  call void @llvm.prefetch.p0(ptr %line{o}, i32 0, i32 2, i32 1)" for o in range(AMX_OUTPUTS)]
    return [
        f"  %ahead = add i64 %i, {AHEAD_BYTES}",
        "  %is_over = icmp uge i64 %ahead, %row_bytes",
        "  %ahead_beyond = sub i64 %ahead, %row_bytes",
        "  %ahead_next = add i64 %ahead_beyond, %next",
        "  %requested = select i1 %is_over, i64 %ahead_next, i64 %ahead",
        "  %line0 = getelementptr i8, ptr %weights, i64 %requested",
        *following,
        *requests,
    ]


def _multiply(amx: AmxFormat) -> str:
    """Returns the function that runs on each thread: it claims outputs until none are left.

    It claims the next ones before the last block of those that it has, to request their weights from memory in time.
    If the number of outputs is not a multiple of a block's, the last block is moved back, and some are computed twice.
    """
    names = ("values", "columns", "num_outputs", "size", "num_rows", "chunk", "unit", "num_threads")
    loads = "\n".join(load_arguments(ARGUMENTS, names))
    shape = shape_registers(narrow=(*range(_WEIGHTS), _COLUMNS, _COLUMNS + 1))
    columns = "ptr %group_columns, i64 %line_bytes, i64 %group_bytes"
    block = f"ptr %weights, i64 %row_bytes, {columns}, ptr %sums, i64 %next"
    return f"""
define void @multiply_columns(ptr %arguments) {{
entry:
  %sums = alloca [{4 * REGISTER_BYTES} x i8], align 64
  %end = alloca i64
{loads}
  %counter = getelementptr i64, ptr %arguments, i64 {list(ARGUMENTS).index("counter")}
  %row_bytes = mul i64 %size, {amx.value_bytes}
  %last_block = sub i64 %num_outputs, {AMX_OUTPUTS}
  %group_rows = call i64 @even_part(i64 %num_rows, i64 {AMX_LINES})
  %block_rows = mul i64 %group_rows, 2
  %line_bytes = mul i64 %group_rows, 4
  %line_terms = mul i64 %group_rows, {amx.num_terms}
  %group_bytes = mul i64 %row_bytes, %line_terms
{shape}
  %first_claimed = call i64 @claim({CLAIM_ARGUMENTS})
  %first_end = load i64, ptr %end
  %is_any = icmp ult i64 %first_claimed, %num_outputs
  br i1 %is_any, label %output_loop, label %exit
output_loop:
  %wanted = phi i64 [ %first_claimed, %entry ], [ %following, %rows_end ]
  %chunk_end = phi i64 [ %first_end, %entry ], [ %following_end, %rows_end ]
  %is_moved = icmp ugt i64 %wanted, %last_block
  %output0 = select i1 %is_moved, i64 %last_block, i64 %wanted
  %output1 = add i64 %output0, {AMX_LINES}
  %output_offset = mul i64 %output0, %row_bytes
  %weights = getelementptr i8, ptr %values, i64 %output_offset
  %in_chunk = add i64 %wanted, {AMX_OUTPUTS}
  %is_in_chunk = icmp ult i64 %in_chunk, %chunk_end
  br i1 %is_in_chunk, label %look_ahead, label %claim
claim:
  %claimed = call i64 @claim({CLAIM_ARGUMENTS})
  %claimed_end = load i64, ptr %end
  br label %look_ahead
look_ahead:
  %following = phi i64 [ %in_chunk, %output_loop ], [ %claimed, %claim ]
  %following_end = phi i64 [ %chunk_end, %output_loop ], [ %claimed_end, %claim ]
  %output_more = icmp ult i64 %following, %num_outputs
  %following_moved = icmp ugt i64 %following, %last_block
  %next_output = select i1 %following_moved, i64 %last_block, i64 %following
  %outputs_away = sub i64 %next_output, %output0
  %bytes_away = mul i64 %outputs_away, %row_bytes
  %next = select i1 %output_more, i64 %bytes_away, i64 0
  br label %row_loop
row_loop:
  %row = phi i64 [ 0, %look_ahead ], [ %row_next, %row_end ]
  %group = udiv i64 %row, %group_rows
  %columns_offset = mul i64 %group, %group_bytes
  %group_columns = getelementptr i8, ptr %columns, i64 %columns_offset
  %left = sub i64 %num_rows, %row
  %are_two = icmp ugt i64 %left, %group_rows
  br i1 %are_two, label %two, label %one
two:
  call void @block2({block})
  br label %finish
one:
  call void @block1({block})
  br label %finish
finish:
  %row_next = add i64 %row, %block_rows
  %row_more = icmp ult i64 %row_next, %num_rows
  %row_limit = select i1 %row_more, i64 %row_next, i64 %num_rows
  br label %finish_loop
finish_loop:
  %r = phi i64 [ %row, %finish ], [ %r_next, %finish_loop ]
  %in_block = sub i64 %r, %row
  %is_second = icmp uge i64 %in_block, %group_rows
  %in_second = sub i64 %in_block, %group_rows
  %column = select i1 %is_second, i64 %in_second, i64 %in_block
  %group_sums = select i1 %is_second, i64 {2 * REGISTER_BYTES}, i64 0
  %column_offset = mul i64 %column, {LINE_BYTES}
  %sum_offset = add i64 %group_sums, %column_offset
  %sum0 = getelementptr i8, ptr %sums, i64 %sum_offset
  %sum1 = getelementptr i8, ptr %sum0, i64 {REGISTER_BYTES}
  call void @finish_row(ptr %arguments, ptr %sum0, i64 %output0, i64 %r)
  call void @finish_row(ptr %arguments, ptr %sum1, i64 %output1, i64 %r)
  %r_next = add i64 %r, 1
  %r_more = icmp ult i64 %r_next, %row_limit
  br i1 %r_more, label %finish_loop, label %row_end
row_end:
  br i1 %row_more, label %row_loop, label %rows_end
rows_end:
  br i1 %output_more, label %output_loop, label %exit
exit:
{RELEASE}
  ret void
}}
"""
