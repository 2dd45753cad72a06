"""Writes what a product's rows may go through before it, in LLVM IR: a norm, or the activation of a feed-forward.

In a call of their own, torch's functions for these take as long as a small product.
"""

from __future__ import annotations

from specgen.models.vector_code import EXPONENTIAL, FLOATS, GATE, LANES, NORM, constant

_NORM = f"""
define internal void @norm_rows(ptr %from, ptr %to, ptr %weight, float %epsilon, i64 %num_rows, i64 %size) {{
entry:
  %size_single = uitofp i64 %size to float
  br label %row
row:
  %r = phi i64 [ 0, %entry ], [ %r_next, %row_end ]
  %offset = mul i64 %r, %size
  %in = getelementptr float, ptr %from, i64 %offset
  %out = getelementptr float, ptr %to, i64 %offset
  br label %square
square:
  %i = phi i64 [ 0, %row ], [ %i_next, %square ]
  %sum = phi {FLOATS} [ zeroinitializer, %row ], [ %sum_next, %square ]
  %at = getelementptr float, ptr %in, i64 %i
  %x = load {FLOATS}, ptr %at, align 4
  %sum_next = call {FLOATS} @llvm.fma.v{LANES}f32({FLOATS} %x, {FLOATS} %x, {FLOATS} %sum)
  %i_next = add i64 %i, {LANES}
  %square_more = icmp ult i64 %i_next, %size
  br i1 %square_more, label %square, label %squared
squared:
  %total = call reassoc float @llvm.vector.reduce.fadd.v{LANES}f32(float 0.0, {FLOATS} %sum_next)
  %mean = fdiv float %total, %size_single
  %enough = fadd float %mean, %epsilon
  %root = call float @llvm.sqrt.f32(float %enough)
  %factor = fdiv float 1.0, %root
  %factor_first = insertelement {FLOATS} poison, float %factor, i32 0
  %factors = shufflevector {FLOATS} %factor_first, {FLOATS} poison, <{LANES} x i32> zeroinitializer
  br label %scale
scale:
  %j = phi i64 [ 0, %squared ], [ %j_next, %scale ]
  %y_at = getelementptr float, ptr %in, i64 %j
  %y = load {FLOATS}, ptr %y_at, align 4
  %w_at = getelementptr float, ptr %weight, i64 %j
  %w = load {FLOATS}, ptr %w_at, align 4
  %scaled = fmul {FLOATS} %y, %factors
  %weighted = fmul {FLOATS} %scaled, %w
  %to_at = getelementptr float, ptr %out, i64 %j
  store {FLOATS} %weighted, ptr %to_at, align 4
  %j_next = add i64 %j, {LANES}
  %scale_more = icmp ult i64 %j_next, %size
  br i1 %scale_more, label %scale, label %row_end
row_end:
  %r_next = add i64 %r, 1
  %row_more = icmp ult i64 %r_next, %num_rows
  br i1 %row_more, label %row, label %exit
exit:
  ret void
}}
"""

_GATE = f"""
define internal void @gate_rows(ptr %from, ptr %to, i64 %num_rows, i64 %size) {{
entry:
  br label %row
row:
  %r = phi i64 [ 0, %entry ], [ %r_next, %row_end ]
  %offset = mul i64 %r, %size
  %double_offset = mul i64 %offset, 2
  %gates = getelementptr float, ptr %from, i64 %double_offset
  %ups = getelementptr float, ptr %gates, i64 %size
  %out = getelementptr float, ptr %to, i64 %offset
  br label %column
column:
  %i = phi i64 [ 0, %row ], [ %i_next, %column ]
  %gate_at = getelementptr float, ptr %gates, i64 %i
  %gate = load {FLOATS}, ptr %gate_at, align 4
  %up_at = getelementptr float, ptr %ups, i64 %i
  %up = load {FLOATS}, ptr %up_at, align 4
  %opposite = fneg {FLOATS} %gate
  %is_below = fcmp olt {FLOATS} %gate, zeroinitializer
  %exponent = select <{LANES} x i1> %is_below, {FLOATS} %gate, {FLOATS} %opposite
  %small = call {FLOATS} @exponential({FLOATS} %exponent)
  %divisor = fadd {FLOATS} %small, {constant("1.0")}
  %dividend = select <{LANES} x i1> %is_below, {FLOATS} %small, {FLOATS} {constant("1.0")}
  %share = fdiv {FLOATS} %dividend, %divisor
  %activated = fmul {FLOATS} %gate, %share
  %product = fmul {FLOATS} %activated, %up
  %to_at = getelementptr float, ptr %out, i64 %i
  store {FLOATS} %product, ptr %to_at, align 4
  %i_next = add i64 %i, {LANES}
  %column_more = icmp ult i64 %i_next, %size
  br i1 %column_more, label %column, label %row_end
row_end:
  %r_next = add i64 %r, 1
  %row_more = icmp ult i64 %r_next, %num_rows
  br i1 %row_more, label %row, label %exit
exit:
  ret void
}}
"""
"""SiLU is x / (1 + exp(-x)). Of the exponentials of x and -x, the one that is at most 1 is computed."""


def _loaded() -> str:
    """Returns what loads the arguments of `run` that `prepared` needs, from index 8 on."""
    kinds = dict.fromkeys(("size", "rows", "facts", "counter", "kind"), "i64")
    lines = []
    for index, (name, kind) in enumerate((kinds | {"prepared": "ptr", "weight": "ptr", "epsilon": "float"}).items(), 8):
        lines += [
            f"  %{name}_at = getelementptr i64, ptr %arguments, i64 {index}",
            f"  %{name} = load {kind}, ptr %{name}_at",
        ]
    return "\n".join(lines)


PROLOGUES = f"""
declare float @llvm.sqrt.f32(float)
{EXPONENTIAL}
{_NORM}
{_GATE}
define internal ptr @prepared(ptr %arguments, ptr %inputs) {{
entry:
{_loaded()}
  switch i64 %kind, label %nothing [
    i64 {NORM}, label %norm
    i64 {GATE}, label %gate
  ]
nothing:
  ret ptr %inputs
norm:
  call void @norm_rows(ptr %inputs, ptr %prepared, ptr %weight, float %epsilon, i64 %rows, i64 %size)
  ret ptr %prepared
gate:
  call void @gate_rows(ptr %inputs, ptr %prepared, i64 %rows, i64 %size)
  ret ptr %prepared
}}
"""
"""`prepared` returns the address of the rows after a prologue: in the memory for them, or the inputs themselves."""
