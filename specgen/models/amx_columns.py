"""Writes the packing of rows into columns of AMX's registers, in LLVM IR.

Each line of a register has four bytes of each row of a group. Sixteen times four bytes of 16 rows are transposed in
the vectors.
"""

from __future__ import annotations

from specgen.models.amx_registers import AMX_LINES, LINE_BYTES
from specgen.models.vector_code import ARGUMENTS, FLOATS, load, load_arguments

_INTEGERS, _NARROW = f"<{AMX_LINES} x i32>", f"<{AMX_LINES} x bfloat>"
_HALF_LINE = LINE_BYTES // 2
"""Inputs whose bfloat16 weights fill a line."""
_STORE = f"llvm.masked.store.v{AMX_LINES}i32.p0"
_MASK = f"<{AMX_LINES} x i1>"


def transpose_code() -> str:
    """Returns the function `transpose`: of 16 rows of 64 bytes it makes 16 lines with four bytes of each row.

    Its arguments are the address of the rows and the bytes from one to the next, and the same of the lines. A line has
    so many bytes as there are from it to the next one, 64 at most.
    """
    lines = [
        f"declare void @{_STORE}({_INTEGERS}, ptr, i32, {_MASK})",
        "define internal void @transpose(ptr %rows, i64 %row_bytes, ptr %lines, i64 %line_bytes) {",
        "entry:",
        "  %count = udiv i64 %line_bytes, 4",
        "  %power = shl i64 1, %count",
        "  %ones = sub i64 %power, 1",
        f"  %bits = trunc i64 %ones to i{AMX_LINES}",
        f"  %mask = bitcast i{AMX_LINES} %bits to {_MASK}",
    ]
    for r in range(AMX_LINES):
        lines += [
            f"  %row_offset{r} = mul i64 %row_bytes, {r}",
            f"  %row_at{r} = getelementptr i8, ptr %rows, i64 %row_offset{r}",
            f"  %v0_{r} = load {_INTEGERS}, ptr %row_at{r}, align 4",
        ]
    # Each step exchanges one bit of the indices of rows with the same bit of the indices of their elements.
    for step, distance in enumerate((1, 2, 4, 8)):
        for r in range(AMX_LINES):
            first, second = f"%v{step}_{r & ~distance}", f"%v{step}_{r | distance}"
            taken = [(c & ~distance) + (r & distance) + (AMX_LINES if c & distance else 0) for c in range(AMX_LINES)]
            order = ", ".join(f"i32 {index}" for index in taken)
            operands = f"{_INTEGERS} {first}, {_INTEGERS} {second}, {_INTEGERS} <{order}>"
            lines.append(f"  %v{step + 1}_{r} = shufflevector {operands}")
    for r in range(AMX_LINES):
        lines += [
            f"  %line_offset{r} = mul i64 %line_bytes, {r}",
            f"  %line_at{r} = getelementptr i8, ptr %lines, i64 %line_offset{r}",
            f"  call void @{_STORE}({_INTEGERS} %v4_{r}, ptr %line_at{r}, i32 4, {_MASK} %mask)",
        ]
    return "\n".join([*lines, "  ret void", "}"])


def int8_columns() -> str:
    """Returns `pack_columns` of rows that are rounded to int8."""
    lines = [
        "  %from_offset = add i64 %rows_offset, %i",
        "  %from = getelementptr i8, ptr %rows, i64 %from_offset",
        "  call void @transpose(ptr %from, i64 %size, ptr %to, i64 %line_bytes)",
    ]
    return _pack_columns(1, LINE_BYTES, lines)


def bfloat16_columns() -> str:
    """Returns `pack_columns` of rows in float32: each input is split into two terms of bfloat16.

    64 bytes of weights have two registers of inputs: of the first terms, and of the second ones.
    """
    split = "\n".join(line for half in range(2) for line in _split(half))
    lines = [
        "  br label %row_loop",
        "row_loop:",
        "  %r = phi i64 [ 0, %input_loop ], [ %r_next, %row_loop ]",
        "  %in_group = mul i64 %r, %size",
        "  %row_offset = add i64 %rows_offset, %in_group",
        "  %offset = add i64 %row_offset, %i",
        "  %from = getelementptr float, ptr %prepared, i64 %offset",
        f"  %first_offset = mul i64 %r, {LINE_BYTES}",
        "  %first_at = getelementptr i8, ptr %first_terms, i64 %first_offset",
        "  %second_at = getelementptr i8, ptr %second_terms, i64 %first_offset",
        split,
        "  %r_next = add i64 %r, 1",
        "  %r_more = icmp ult i64 %r_next, %count",
        "  br i1 %r_more, label %row_loop, label %rows_end",
        "rows_end:",
        f"  %register_bytes = mul i64 %line_bytes, {AMX_LINES}",
        "  %second_to = getelementptr i8, ptr %to, i64 %register_bytes",
        f"  call void @transpose(ptr %first_terms, i64 {LINE_BYTES}, ptr %to, i64 %line_bytes)",
        f"  call void @transpose(ptr %second_terms, i64 {LINE_BYTES}, ptr %second_to, i64 %line_bytes)",
    ]
    return _pack_columns(4, _HALF_LINE, lines, "rows_end")


def _pack_columns(value_bytes: int, step: int, lines: list[str], last_label: str = "input_loop") -> str:
    """Returns the function `pack_columns`, a `Job.pack_inputs`.

    Args:
        value_bytes: Bytes of a packed input.
        step: Inputs that are packed at once.
        lines: Packs inputs from `%i` on, of the `%count` rows of a group. The first of them has `%rows_offset` inputs
            before it, and its column begins at `%to`.
        last_label: Of the lines.
    """
    loads = "\n".join(load_arguments(ARGUMENTS, ("rows", "columns", "size", "num_rows")))
    memory = "\n".join(
        f"  %{name}_terms = alloca [{AMX_LINES * LINE_BYTES} x i8], align 64" for name in ("first", "second")
    )
    body = "\n".join(lines)
    return f"""
define internal void @pack_columns(ptr %arguments, ptr %prepared, i64 %first, i64 %last) {{
entry:
{memory}
{loads}
  %group_rows = call i64 @even_part(i64 %num_rows, i64 {AMX_LINES})
  %line_bytes = mul i64 %group_rows, 4
  %input_bytes = mul i64 %group_rows, {value_bytes}
  br label %group_loop
group_loop:
  %row = phi i64 [ 0, %entry ], [ %row_next, %group_end ]
  %left = sub i64 %num_rows, %row
  %count = call i64 @llvm.umin.i64(i64 %left, i64 %group_rows)
  %rows_offset = mul i64 %row, %size
  %group_offset = mul i64 %rows_offset, {value_bytes}
  %group_at = getelementptr i8, ptr %columns, i64 %group_offset
  br label %input_loop
input_loop:
  %i = phi i64 [ %first, %group_loop ], [ %i_next, %{last_label} ]
  %to_offset = mul i64 %i, %input_bytes
  %to = getelementptr i8, ptr %group_at, i64 %to_offset
{body}
  %i_next = add i64 %i, {step}
  %i_more = icmp ult i64 %i_next, %last
  br i1 %i_more, label %input_loop, label %group_end
group_end:
  %row_next = add i64 %row, %group_rows
  %row_more = icmp ult i64 %row_next, %num_rows
  br i1 %row_more, label %group_loop, label %exit
exit:
  ret void
}}
"""


def _split(half: int) -> list[str]:
    """Returns what splits half a line's inputs of a row into two terms and stores these."""
    at = f"i64 {LINE_BYTES // 2 * half}"
    return [
        *load(f"inputs{half}", FLOATS, "from", "float", str(AMX_LINES * half)),
        f"  %high{half} = fptrunc {FLOATS} %inputs{half} to {_NARROW}",
        f"  %high_wide{half} = fpext {_NARROW} %high{half} to {FLOATS}",
        f"  %rest{half} = fsub {FLOATS} %inputs{half}, %high_wide{half}",
        f"  %low{half} = fptrunc {FLOATS} %rest{half} to {_NARROW}",
        f"  %high_at{half} = getelementptr i8, ptr %first_at, {at}",
        f"  store {_NARROW} %high{half}, ptr %high_at{half}, align 32",
        f"  %low_at{half} = getelementptr i8, ptr %second_at, {at}",
        f"  store {_NARROW} %low{half}, ptr %low_at{half}, align 32",
    ]
