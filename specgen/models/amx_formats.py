"""Writes what formats of weights add to products on AMX, in LLVM IR: int8 and bfloat16."""

from __future__ import annotations

from specgen.models.amx_code import AmxFormat
from specgen.models.amx_columns import bfloat16_columns, int8_columns, transpose_code
from specgen.models.amx_registers import AMX_LINES
from specgen.models.job_code import Job
from specgen.models.vector_code import ARGUMENTS, FLOATS, load, load_arguments, spread

INT8_COLUMNS = Job("multiply_columns", pack_row="pack_row", pack_inputs="pack_columns")
"""What threads do for int8 weights: they round each row, and then pack the columns."""
BFLOAT16_COLUMNS = Job("multiply_columns", pack_inputs="pack_columns")
"""What threads do for bfloat16 weights."""
_INTEGERS = f"<{AMX_LINES} x i32>"


def int8_amx() -> AmxFormat:
    """Returns int8 weights. Rows are rounded to int8, so the sums are whole numbers, the same as without AMX."""
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
    text = "\n".join([transpose_code(), int8_columns(), finish_row])
    return AmxFormat("llvm.x86.tdpbusd", value_bytes=1, num_terms=1, text=text)


def bfloat16_amx() -> AmxFormat:
    """Returns bfloat16 weights. An input is the sum of two terms of bfloat16, off by at most 2^-16 of it.

    That holds from 2^-110 to the largest bfloat16, 3.39e38. Outputs of larger inputs are not numbers, and subnormal
    numbers count as 0.
    """
    finish_row = _finish_row((), [f"  %total = bitcast {_INTEGERS} %sums to {FLOATS}"])
    text = "\n".join([transpose_code(), bfloat16_columns(), finish_row])
    return AmxFormat("llvm.x86.tdpbf16ps", value_bytes=2, num_terms=2, text=text)


def _finish_row(names: tuple[str, ...], lines: list[str]) -> str:
    """Returns the function that stores a row's outputs: `lines` compute `%total` of `%sums`."""
    code = [
        "define internal void @finish_row(ptr %arguments, ptr %sum, i64 %output, i64 %row) {",
        "entry:",
        *load_arguments(ARGUMENTS, (*names, "bias", "outputs", "num_outputs")),
        f"  %sums = load {_INTEGERS}, ptr %sum, align 64",
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
