"""Writes what formats of weights add to products on AMX, in LLVM IR: int8 and bfloat16."""

from __future__ import annotations

from specgen.models.amx_code import AmxFormat
from specgen.models.amx_registers import AMX_LINES, LINE_BYTES
from specgen.models.dot_product import FULL_STEPS, OFFSET
from specgen.models.quantize_code import quantize
from specgen.models.vector_code import ARGUMENTS, FLOATS, load, load_arguments, spread

_HALF_LINE = LINE_BYTES // 2
"""Inputs whose bfloat16 weights fill a line."""
_INTEGERS, _NARROW = f"<{AMX_LINES} x i32>", f"<{AMX_LINES} x bfloat>"
_GATHER = "llvm.x86.avx512.mask.gather.dpi.512"
_GATHER_DECLARED = f"declare {_INTEGERS} @{_GATHER}({_INTEGERS}, ptr, {_INTEGERS}, <{AMX_LINES} x i1>, i32 immarg)"


def int8_amx() -> AmxFormat:
    """Returns int8 weights. Rows are rounded to int8, so the sums are whole numbers, the same as without AMX."""
    loads = "\n".join(load_arguments(ARGUMENTS, ("rows", "row_scales", "excesses", "size", "num_rows")))
    pack_columns = f"""
define internal void @pack_columns(ptr %arguments, ptr %prepared) {{
entry:
{loads}
  call void @quantize_columns(ptr %prepared, ptr %rows, ptr %row_scales, ptr %excesses, i64 %num_rows, i64 %size,
                              i64 {FULL_STEPS}, i64 {OFFSET}, i64 0)
  ret void
}}
"""
    lines = [
        *load("excess", "i32", "excesses", "i32", "%row"),
        *spread("excesses_wide", "i32", "excess", AMX_LINES),
        *load("row_scale", "float", "row_scales", "float", "%row"),
        *spread("row_scales_wide", "float", "row_scale", AMX_LINES),
        *load("scales", FLOATS, "weight_scales", "float", "%output"),
        f"  %exact = add {_INTEGERS} %sums, %excesses_wide",
        f"  %float = sitofp {_INTEGERS} %exact to {FLOATS}",
        f"  %once = fmul {FLOATS} %float, %scales",
        f"  %total = fmul {FLOATS} %once, %row_scales_wide",
    ]
    finish_row = _finish_row(("weight_scales", "row_scales", "excesses"), lines)
    text = "\n".join([_quantize_columns(), pack_columns, finish_row])
    return AmxFormat("llvm.x86.tdpbusd", value_bytes=1, num_terms=1, text=text)


def bfloat16_amx() -> AmxFormat:
    """Returns bfloat16 weights. An input is the sum of two terms of bfloat16, off by at most 2^-16 of it.

    That holds from 2^-110 to the largest bfloat16, 3.39e38. Outputs of larger inputs are not numbers, and subnormal
    numbers count as 0.
    """
    loads = "\n".join(load_arguments(ARGUMENTS, ("rows", "size", "num_rows")))
    stores = "\n".join(line for half in range(2) for line in _split(half))
    pack_columns = f"""
define internal void @pack_columns(ptr %arguments, ptr %prepared) {{
entry:
{loads}
  %group_rows = call i64 @even_part(i64 %num_rows, i64 {AMX_LINES})
  %line_bytes = mul i64 %group_rows, 4
  %row_bytes = mul i64 %size, 4
  br label %row_loop
row_loop:
  %row = phi i64 [ 0, %entry ], [ %row_next, %row_end ]
  %row_offset = mul i64 %row, %size
  %from = getelementptr float, ptr %prepared, i64 %row_offset
  %to = call ptr @column_at(ptr %rows, i64 %row, i64 %num_rows, i64 %row_bytes)
  br label %input_loop
input_loop:
  %i = phi i64 [ 0, %row_loop ], [ %i_next, %input_loop ]
  %from_here = getelementptr float, ptr %from, i64 %i
  %offset = mul i64 %i, %line_bytes
  %to_here = getelementptr i8, ptr %to, i64 %offset
{stores}
  %i_next = add i64 %i, {_HALF_LINE}
  %i_more = icmp ult i64 %i_next, %size
  br i1 %i_more, label %input_loop, label %row_end
row_end:
  %row_next = add i64 %row, 1
  %row_more = icmp ult i64 %row_next, %num_rows
  br i1 %row_more, label %row_loop, label %exit
exit:
  ret void
}}
"""
    finish_row = _finish_row((), [f"  %total = bitcast {_INTEGERS} %sums to {FLOATS}"])
    return AmxFormat("llvm.x86.tdpbf16ps", value_bytes=2, num_terms=2, text=pack_columns + finish_row)


def _split(half: int) -> list[str]:
    """Returns what splits half a line's inputs into two terms and stores these: in each line, two inputs of a row."""
    h, num_pairs = half, AMX_LINES // 2
    lines = [
        *load(f"inputs{h}", FLOATS, "from_here", "float", str(AMX_LINES * h)),
        f"  %high{h} = fptrunc {FLOATS} %inputs{h} to {_NARROW}",
        f"  %high_wide{h} = fpext {_NARROW} %high{h} to {FLOATS}",
        f"  %rest{h} = fsub {FLOATS} %inputs{h}, %high_wide{h}",
        f"  %low{h} = fptrunc {FLOATS} %rest{h} to {_NARROW}",
    ]
    for term, name in enumerate(("high", "low")):
        lines.append(f"  %{name}_pairs{h} = bitcast {_NARROW} %{name}{h} to <{num_pairs} x i32>")
        for index in range(num_pairs):
            pair = f"{name}{h}_{index}"
            lines += [
                f"  %{pair} = extractelement <{num_pairs} x i32> %{name}_pairs{h}, i32 {index}",
                f"  %{pair}_offset = mul i64 %line_bytes, {term * AMX_LINES + h * num_pairs + index}",
                f"  %{pair}_at = getelementptr i8, ptr %to_here, i64 %{pair}_offset",
                f"  store i32 %{pair}, ptr %{pair}_at, align 4",
            ]
    return lines


def _finish_row(names: tuple[str, ...], lines: list[str]) -> str:
    """Returns the function that stores a row's outputs: `lines` compute `%total` of `%sums`, one of each line."""
    every_line = ", ".join(f"i32 {line * AMX_LINES}" for line in range(AMX_LINES))
    all_lanes = ", ".join(["i1 true"] * AMX_LINES)
    lanes = f"{_INTEGERS} <{every_line}>, <{AMX_LINES} x i1> <{all_lanes}>"
    code = [
        _GATHER_DECLARED,
        "define internal void @finish_row(ptr %arguments, ptr %sum, i64 %output, i64 %row) {",
        "entry:",
        *load_arguments(ARGUMENTS, (*names, "bias", "outputs", "num_outputs")),
        f"  %sums = call {_INTEGERS} @{_GATHER}({_INTEGERS} zeroinitializer, ptr %sum, {lanes}, i32 4)",
        *lines,
        *load("biases", FLOATS, "bias", "float", "%output"),
        f"  %biased = fadd {FLOATS} %total, %biases",
        "  %line = mul i64 %num_outputs, %row",
        "  %index = add i64 %line, %output",
        "  %to = getelementptr float, ptr %outputs, i64 %index",
        f"  store {FLOATS} %biased, ptr %to, align 4",
        "  ret void",
        "}",
    ]
    return "\n".join(code)


def _quantize_columns() -> str:
    """Returns the function `quantize_columns`: each line of a register has four inputs of each row of a group."""
    place = f"""
  %group_rows = call i64 @even_part(i64 %num_rows, i64 {AMX_LINES})
  %out = call ptr @column_at(ptr %values, i64 %r, i64 %num_rows, i64 %size)"""
    stores = [
        "  %to_offset = mul i64 %j, %group_rows",
        "  %to0 = getelementptr i8, ptr %out, i64 %to_offset",
        *[f"  %to{line} = getelementptr i32, ptr %to{line - 1}, i64 %group_rows" for line in range(1, 4)],
        "  %fours = bitcast <16 x i8> %flipped to <4 x i32>",
    ]
    for line in range(4):
        stores += [
            f"  %four{line} = extractelement <4 x i32> %fours, i32 {line}",
            f"  store i32 %four{line}, ptr %to{line}, align 4",
        ]
    return quantize("quantize_columns", place, "\n".join(stores))
