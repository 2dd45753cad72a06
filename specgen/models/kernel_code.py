"""Writes what the kernels of all weight formats have in common, in LLVM IR.

`run` lets rows go through a prologue and packs them by `pack_rows`: most formats round them to int8. Then all threads
run `multiply_rows`, which claims outputs. A format's tiles compute them. On AMX, `pack_columns` and `multiply_columns`
take their places.
"""

from __future__ import annotations

from specgen.models.quantize_code import QUANTIZE
from specgen.models.thread_code import CLAIM, CLAIM_LOOP, ON_THREADS
from specgen.models.vector_code import ARGUMENTS, Tiles, load_arguments


def kernel_text(tiles: Tiles, prologues: str) -> str:
    """Returns the kernels of a format that rounds rows to int8, in LLVM IR.

    Args:
        tiles: The format's.
        prologues: As in `complete_text`.
    """
    return complete_text(rounding_code(tiles), prologues)


def rounding_code(tiles: Tiles) -> str:
    """Returns the code that `complete_text` takes for a format that rounds rows to int8."""
    return "\n".join([QUANTIZE, _pack_rows(tiles), tiles.text, _multiply(tiles)])


def complete_text(code: str, prologues: str, few_rows: int | None = None) -> str:
    """Returns a format's kernels in LLVM IR.

    Args:
        code: The functions `pack_rows`, which gets the arguments and the rows after a prologue, and `multiply_rows`,
            which gets the arguments; or `pack_columns` and `multiply_columns` on AMX; or all of them.
        prologues: The function `prepared`, which returns the address of the rows after a prologue.
        few_rows: Up to this number of rows are multiplied on vectors, and more on AMX. All are on vectors if None.
    """
    declaration = "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)"
    return "\n".join([declaration, EVEN_PART, CLAIM, prologues, code, ON_THREADS, _run(few_rows)])


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


def _run(few_rows: int | None) -> str:
    """Returns the function that is called: it prepares the rows and lets all threads multiply."""
    loads = "\n".join(load_arguments(ARGUMENTS, ("num_rows",)))
    if not few_rows:
        steps = _pack_and_multiply("rows" if few_rows is None else "columns")
    else:
        steps = f"""
  %are_few = icmp ule i64 %num_rows, {few_rows}
  br i1 %are_few, label %few, label %many
few:
{_pack_and_multiply("rows")}
many:
{_pack_and_multiply("columns")}"""
    return f"""
define void @run(ptr %arguments, ptr %inputs, ptr %parallel, i64 %num_threads) {{
entry:
{loads}
  %prepared = call ptr @prepared(ptr %arguments, ptr %inputs)
{steps}
}}
"""


def _pack_and_multiply(kind: str) -> str:
    return f"""
  call void @pack_{kind}(ptr %arguments, ptr %prepared)
  call void @on_threads(ptr @multiply_{kind}, ptr %arguments, ptr %parallel, i64 %num_threads)
  ret void"""


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
