"""Writes what the kernels of all weight formats have in common, in LLVM IR.

`run` lets all threads run a job: they pack the rows and multiply them. Most formats round rows to int8 by `pack_row`,
and claim outputs in `multiply_rows`, which a format's tiles compute. On AMX, `pack_columns` packs these rows once more,
and `multiply_columns` claims outputs.
"""

from __future__ import annotations

from specgen.models.job_code import Job, job_code
from specgen.models.quantize_code import QUANTIZE
from specgen.models.thread_code import CLAIM, CLAIM_LOOP, ON_THREADS
from specgen.models.vector_code import ARGUMENTS, Tiles, call_tile, load_arguments

ROUNDING = Job("multiply_rows", pack_row="pack_row")
"""What threads do for a format that rounds rows to int8."""


def kernel_text(tiles: Tiles, prologues: str) -> str:
    """Returns the kernels of a format that rounds rows to int8, in LLVM IR.

    Args:
        tiles: The format's.
        prologues: As in `complete_text`.
    """
    return complete_text(rounding_code(tiles), prologues, ROUNDING)


def rounding_code(tiles: Tiles) -> str:
    """Returns the functions of `ROUNDING`."""
    return "\n".join([QUANTIZE, _pack_row(tiles), tiles.text, _multiply(tiles)])


def complete_text(code: str, prologues: str, many: Job, few: Job | None = None, few_rows: int = 0) -> str:
    """Returns a format's kernels in LLVM IR.

    Args:
        code: The functions of its jobs.
        prologues: The function `prepared`, which gets the arguments, the address of the inputs and the index of a row,
            computes its prologue, and returns its address.
        many: What threads do for rows.
        few: What they do for up to `few_rows` rows, instead.
    """
    jobs = [job_code("many", many), *([job_code("few", few)] if few else [])]
    return "\n".join([_DECLARATIONS, EVEN_PART, CLAIM, prologues, code, *jobs, ON_THREADS, _run(few_rows)])


_DECLARATIONS = "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)\ndeclare void @llvm.x86.sse2.pause()"
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


def _run(few_rows: int) -> str:
    """Returns the function that is called: it lets all threads do the job for so many rows."""
    loads = "\n".join(load_arguments(ARGUMENTS, ("num_rows",)))
    given = "ptr %arguments, ptr %inputs, ptr %parallel, i64 %num_threads"
    choice = "  br label %many"
    if few_rows:
        choice = f"""  %are_few = icmp ule i64 %num_rows, {few_rows}
  br i1 %are_few, label %few, label %many
few:
  call void @few({given})
  ret void"""
    return f"""
define void @run({given}) {{
entry:
{loads}
  %counter_at = getelementptr i64, ptr %arguments, i64 {list(ARGUMENTS).index("counter")}
  store i64 0, ptr %counter_at
{choice}
many:
  call void @many({given})
  ret void
}}
"""


def _pack_row(tiles: Tiles) -> str:
    """Returns the function that rounds a row; it has so many blocks as it has scales."""
    loads = "\n".join(load_arguments(ARGUMENTS, ("rows", "row_scales", "excesses", "size", "num_scales")))
    return f"""
define internal void @pack_row(ptr %arguments, ptr %prepared, i64 %row) {{
entry:
{loads}
  %block = udiv i64 %size, %num_scales
  %offset = mul i64 %row, %size
  %out = getelementptr i8, ptr %rows, i64 %offset
  %scales_offset = mul i64 %row, %num_scales
  %row_scales_here = getelementptr float, ptr %row_scales, i64 %scales_offset
  %excesses_here = getelementptr i32, ptr %excesses, i64 %scales_offset
  call void @quantize(ptr %prepared, ptr %out, ptr %row_scales_here, ptr %excesses_here, i64 %num_scales, i64 %block,
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
    lines = ["define void @multiply_rows(ptr %arguments) {", "entry:", *load_arguments(ARGUMENTS, names)]
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
  %end = alloca i64
  br label %claim
{CLAIM_LOOP}
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
