"""Writes what runs the kernels of a pass one after the other, and what is between its products, in LLVM IR."""

from __future__ import annotations

from specgen.models.vector_code import FLOATS, LANES, load, load_arguments, spread

STEP = ("function", "arguments", "inputs")
"""What a step of `run_steps` consists of: three addresses. The function gets the other two, OpenMP's entry point and
the number of threads."""
ADD_ARGUMENTS = {"hidden": "ptr", "num_values": "i64", "scale": "float"}
"""What `add` reads at the address of its arguments, 64 bits each, in this order. It adds its inputs times the scale to
`hidden`. The number of values is a multiple of `LANES`."""
NORM_ARGUMENTS = {
    "weight": "ptr",
    "epsilon": "float",
    "size": "i64",
    "num_norms": "i64",
    "num_rows": "i64",
    "row_stride": "i64",
}
"""What `norm` reads at the address of its arguments. It computes root mean square norms of its inputs in place: in each
row `num_norms`, of `size` values each, side by side."""


def step_code(prologues: str) -> str:
    """Returns the functions `run_steps`, `add` and `norm`.

    Args:
        prologues: The function `norm_row`.
    """
    return "\n".join([prologues, _RUN_STEPS, _add(), _norm()])


_RUN_STEPS = f"""
define void @run_steps(ptr %steps, i64 %num_steps, ptr %parallel, i64 %num_threads) {{
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %i_next, %loop ]
  %step = getelementptr [{len(STEP)} x ptr], ptr %steps, i64 %i
  %arguments_at = getelementptr ptr, ptr %step, i64 {STEP.index("arguments")}
  %inputs_at = getelementptr ptr, ptr %step, i64 {STEP.index("inputs")}
  %function = load ptr, ptr %step
  %arguments = load ptr, ptr %arguments_at
  %inputs = load ptr, ptr %inputs_at
  call void %function(ptr %arguments, ptr %inputs, ptr %parallel, i64 %num_threads)
  %i_next = add i64 %i, 1
  %is_more = icmp ult i64 %i_next, %num_steps
  br i1 %is_more, label %loop, label %exit
exit:
  ret void
}}
"""


def _add() -> str:
    loads = "\n".join(load_arguments(ADD_ARGUMENTS, list(ADD_ARGUMENTS)) + spread("scales", "float", "scale", LANES))
    values = "\n".join(load("x", FLOATS, "hidden", "float", "%i") + load("y", FLOATS, "added", "float", "%i"))
    return f"""
define void @add(ptr %arguments, ptr %added, ptr %parallel, i64 %num_threads) {{
entry:
{loads}
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %i_next, %loop ]
{values}
  %scaled = fmul {FLOATS} %y, %scales
  %sum = fadd {FLOATS} %x, %scaled
  store {FLOATS} %sum, ptr %x_at, align 4
  %i_next = add i64 %i, {LANES}
  %is_more = icmp ult i64 %i_next, %num_values
  br i1 %is_more, label %loop, label %exit
exit:
  ret void
}}
"""


def _norm() -> str:
    loads = "\n".join(load_arguments(NORM_ARGUMENTS, list(NORM_ARGUMENTS)))
    return f"""
define void @norm(ptr %arguments, ptr %inputs, ptr %parallel, i64 %num_threads) {{
entry:
{loads}
  br label %rows_loop
rows_loop:
  %row = phi i64 [ 0, %entry ], [ %row_next, %row_end ]
  %row_offset = mul i64 %row, %row_stride
  %row_here = getelementptr float, ptr %inputs, i64 %row_offset
  br label %norms_loop
norms_loop:
  %index = phi i64 [ 0, %rows_loop ], [ %index_next, %norms_loop ]
  %offset = mul i64 %index, %size
  %here = getelementptr float, ptr %row_here, i64 %offset
  call void @norm_row(ptr %here, ptr %here, ptr %weight, float %epsilon, i64 %size)
  %index_next = add i64 %index, 1
  %norms_more = icmp ult i64 %index_next, %num_norms
  br i1 %norms_more, label %norms_loop, label %row_end
row_end:
  %row_next = add i64 %row, 1
  %rows_more = icmp ult i64 %row_next, %num_rows
  br i1 %rows_more, label %rows_loop, label %exit
exit:
  ret void
}}
"""
