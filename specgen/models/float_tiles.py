"""Writes the inner loops of the kernels for 16-bit float weights in LLVM IR: a few outputs of a few rows.

Weights are widened to float32 in the registers, where the sums stay, too. Each sum is a vector: lane i adds up the
products of inputs i, i + lanes, i + 2 lanes and so on, in this order for any number of rows.
"""

from __future__ import annotations

import torch

from specgen.models.sums_code import add_lanes
from specgen.models.vector_code import load

NUM_OUTPUTS = 3
"""Outputs that are computed at once."""
MAX_ROWS = {64: 9, 32: 4}
"""Rows that are computed at once, by bytes of a vector: the registers hold the sums of all pairs, the weights and one
row, 32 of 64 bytes or 16 of 32 bytes."""


def float_tiles(width: int, dtype: torch.dtype) -> str:
    """Returns the functions `tile1`, `tile2` ..., which add products of so many rows to sums.

    Their arguments are the weights of the first output, the bytes from one output to the next, the packed rows, the
    sums of the first output and row, the bytes from one output's sums to the next, and the number of inputs; then the
    bytes from the weights to those that are requested from memory, and how many bytes each step goes on there.

    Args:
        width: Bytes of a vector.
        dtype: Type of the weights: bfloat16 or float16.
    """
    lanes = width // 4
    floats = f"<{lanes} x float>"
    declaration = f"declare {floats} @llvm.fma.v{lanes}f32({floats}, {floats}, {floats})"
    tiles = [_tile(num_rows, width, dtype) for num_rows in range(1, MAX_ROWS[width] + 1)]
    # The prologues declare it for 64 bytes.
    return "\n".join(tiles if width == 64 else [declaration, *tiles])


def _tile(num_rows: int, width: int, dtype: torch.dtype) -> str:
    lanes = width // 4
    floats = f"<{lanes} x float>"
    rows, outputs = range(num_rows), range(NUM_OUTPUTS)
    pairs = [(o, r) for o in outputs for r in rows]
    weights, sums = "ptr %w0, i64 %row_bytes", "ptr %sums0, i64 %sums_bytes"
    numbers = "i64 %size, i64 %ahead, i64 %ahead_step"
    lines = [
        f"define internal void @tile{num_rows}({weights}, ptr %rows, {sums}, {numbers}) {{",
        "entry:",
    ]
    for o in outputs[1:]:
        lines += [
            f"  %w{o} = getelementptr i8, ptr %w{o - 1}, i64 %row_bytes",
            f"  %sums{o} = getelementptr i8, ptr %sums{o - 1}, i64 %sums_bytes",
        ]
    for o, r in pairs:
        lines += [
            f"  %at{o}_{r} = getelementptr {floats}, ptr %sums{o}, i64 {r}",
            f"  %given{o}_{r} = load {floats}, ptr %at{o}_{r}, align 4",
        ]
    lines += [
        "  br label %inputs_loop",
        "inputs_loop:",
        "  %i = phi i64 [ 0, %entry ], [ %i_next, %inputs_loop ]",
        "  %requested = phi i64 [ %ahead, %entry ], [ %requested_next, %inputs_loop ]",
        *[f"  %a{o}_{r} = phi {floats} [ %given{o}_{r}, %entry ], [ %c{o}_{r}, %inputs_loop ]" for o, r in pairs],
        f"  %rows_offset = mul i64 %i, {num_rows}",
        "  %rows_here = getelementptr float, ptr %rows, i64 %rows_offset",
    ]
    for o in outputs:
        lines += [
            f"  %request{o} = getelementptr i8, ptr %w{o}, i64 %requested",
            f"  call void @llvm.prefetch.p0(ptr %request{o}, i32 0, i32 2, i32 1)",
            f"  %here{o} = getelementptr i16, ptr %w{o}, i64 %i",
        ]
    # Two steps at once: a vector's bytes of each weight.
    for step, before, after in ((0, "a", "b"), (1, "b", "c")):
        lines += [line for o in outputs for line in _widened(f"{step}_{o}", f"here{o}", step * lanes, dtype, lanes)]
        for r in rows:
            lines += [
                f"  %x{step}_{r}_at = getelementptr {floats}, ptr %rows_here, i64 {step * num_rows + r}",
                f"  %x{step}_{r} = load {floats}, ptr %x{step}_{r}_at, align 4",
            ]
            for o in outputs:
                operands = f"{floats} %wide{step}_{o}, {floats} %x{step}_{r}, {floats} %{before}{o}_{r}"
                lines.append(f"  %{after}{o}_{r} = call {floats} @llvm.fma.v{lanes}f32({operands})")
    lines += [
        f"  %i_next = add i64 %i, {2 * lanes}",
        "  %requested_next = add i64 %requested, %ahead_step",
        "  %is_more = icmp ult i64 %i_next, %size",
        "  br i1 %is_more, label %inputs_loop, label %exit",
        "exit:",
        *[f"  store {floats} %c{o}_{r}, ptr %at{o}_{r}, align 4" for o, r in pairs],
        "  ret void",
        "}",
    ]
    return "\n".join(lines)


def _widened(name: str, weights: str, index: int, dtype: torch.dtype, lanes: int) -> list[str]:
    """Returns what loads weights from an index on and turns them into float32: a bfloat16 is the upper half of one."""
    kind = f"<{lanes} x {'half' if dtype == torch.float16 else 'i16'}>"
    lines = load(f"narrow{name}", kind, weights, "i16", str(index))
    if dtype == torch.float16:
        return [*lines, f"  %wide{name} = fpext {kind} %narrow{name} to <{lanes} x float>"]
    sixteen = "<" + ", ".join(["i32 16"] * lanes) + ">"
    return [
        *lines,
        f"  %long{name} = zext {kind} %narrow{name} to <{lanes} x i32>",
        f"  %moved{name} = shl <{lanes} x i32> %long{name}, {sixteen}",
        f"  %wide{name} = bitcast <{lanes} x i32> %moved{name} to <{lanes} x float>",
    ]


def finish(width: int, num_outputs: int) -> str:
    """Returns the function that adds up the lanes of the sums of some outputs, adds the bias and stores the results."""
    lanes = width // 4
    floats = f"<{lanes} x float>"
    lines = []
    for o in range(4):
        lines += [
            f"  %offset{o} = mul i64 %sums_bytes, {o}",
            f"  %at{o} = getelementptr i8, ptr %first_at, i64 %offset{o}",
            f"  %v{o} = load {floats}, ptr %at{o}, align 4",
        ]
    added = "\n".join(lines + add_lanes("sum", ["v0", "v1", "v2", "v3"], "float", lanes))
    return f"""
define internal void @finish(ptr %sums, ptr %bias, ptr %outputs, i64 %num_outputs, i64 %num_rows) {{
entry:
  %sums_bytes = mul i64 %num_rows, {width}
  br label %output_loop
output_loop:
  %output = phi i64 [ 0, %entry ], [ %output_next, %output_end ]
  %bias_at = getelementptr float, ptr %bias, i64 %output
  %biases = load <4 x float>, ptr %bias_at, align 4
  %output_offset = mul i64 %output, %sums_bytes
  %output_sums = getelementptr i8, ptr %sums, i64 %output_offset
  br label %row_loop
row_loop:
  %row = phi i64 [ 0, %output_loop ], [ %row_next, %row_loop ]
  %first_at = getelementptr {floats}, ptr %output_sums, i64 %row
{added}
  %biased = fadd <4 x float> %sum4, %biases
  %line = mul i64 %row, %num_outputs
  %index = add i64 %line, %output
  %to = getelementptr float, ptr %outputs, i64 %index
  store <4 x float> %biased, ptr %to, align 4
  %row_next = add i64 %row, 1
  %row_more = icmp ult i64 %row_next, %num_rows
  br i1 %row_more, label %row_loop, label %output_end
output_end:
  %output_next = add i64 %output, 4
  %output_more = icmp ult i64 %output_next, {num_outputs}
  br i1 %output_more, label %output_loop, label %exit
exit:
  ret void
}}
"""
