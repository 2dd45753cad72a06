"""Writes what a product's rows may go through before it, in LLVM IR: a norm, or the activation of a feed-forward.

In a call of their own, torch's functions for these take as long as a small product.
"""

from __future__ import annotations

from math import pi, sqrt

from specgen.models.vector_code import (
    ARGUMENTS,
    EXPONENTIAL,
    FLOATS,
    GELU,
    LANES,
    NORM,
    NOTHING,
    constant,
    hexadecimal,
    load_arguments,
)

_LINEAR = 2 * sqrt(2 / pi)


def _constant(value: float) -> str:
    return constant(hexadecimal(value))


_NORM = f"""
define internal void @norm_row(ptr %in, ptr %out, ptr %weight, float %epsilon, i64 %size) {{
entry:
  %size_single = uitofp i64 %size to float
  br label %square
square:
  %i = phi i64 [ 0, %entry ], [ %i_next, %square ]
  %sum = phi {FLOATS} [ zeroinitializer, %entry ], [ %sum_next, %square ]
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
  br i1 %scale_more, label %scale, label %exit
exit:
  ret void
}}
"""

_OF_SILU = f"  %x = bitcast {FLOATS} %gate to {FLOATS}"
_OF_GELU = f"""
  %square = fmul {FLOATS} %gate, %gate
  %cubic = fmul {FLOATS} %square, {_constant(0.044715 * _LINEAR)}
  %slope = fadd {FLOATS} %cubic, {_constant(_LINEAR)}
  %x = fmul {FLOATS} %gate, %slope"""
"""Lines that compute x, see `_gate`."""


def _gate(name: str, argument: str) -> str:
    """Returns a function that turns gates and ups, side by side, into g / (1 + exp(-x)) times the ups.

    It is SiLU with x = g, and with x = 2 sqrt(2 / pi) (g + 0.044715 g^3) GELU by tanh (Hendrycks and Gimpel 2016,
    arXiv:1606.08415). Of the exponentials of x and -x, the one that is at most 1 is computed.
    """
    return f"""
define internal void @{name}(ptr %gates, ptr %out, i64 %size) {{
entry:
  %ups = getelementptr float, ptr %gates, i64 %size
  br label %column
column:
  %i = phi i64 [ 0, %entry ], [ %i_next, %column ]
  %gate_at = getelementptr float, ptr %gates, i64 %i
  %gate = load {FLOATS}, ptr %gate_at, align 4
  %up_at = getelementptr float, ptr %ups, i64 %i
  %up = load {FLOATS}, ptr %up_at, align 4
{argument}
  %opposite = fneg {FLOATS} %x
  %is_below = fcmp olt {FLOATS} %x, zeroinitializer
  %exponent = select <{LANES} x i1> %is_below, {FLOATS} %x, {FLOATS} %opposite
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
  br i1 %column_more, label %column, label %exit
exit:
  ret void
}}
"""


def _prepared() -> str:
    """Returns the function that computes a row's prologue, and returns its address after that.

    It is in the memory for prepared rows, or that of the inputs themselves.
    """
    names = ("size", "prologue", "prepared", "norm_weight", "epsilon")
    loads = "\n".join(load_arguments(ARGUMENTS, names))
    return f"""
define internal ptr @prepared(ptr %arguments, ptr %inputs, i64 %row) {{
entry:
{loads}
  %offset = mul i64 %row, %size
  %out = getelementptr float, ptr %prepared, i64 %offset
  %same = getelementptr float, ptr %inputs, i64 %offset
  switch i64 %prologue, label %gate [
    i64 {NOTHING}, label %nothing
    i64 {NORM}, label %norm
  ]
nothing:
  ret ptr %same
norm:
  call void @norm_row(ptr %same, ptr %out, ptr %norm_weight, float %epsilon, i64 %size)
  ret ptr %out
gate:
  %gates = getelementptr float, ptr %same, i64 %offset
  %is_gelu = icmp eq i64 %prologue, {GELU}
  br i1 %is_gelu, label %gelu, label %silu
silu:
  call void @silu_row(ptr %gates, ptr %out, i64 %size)
  ret ptr %out
gelu:
  call void @gelu_row(ptr %gates, ptr %out, i64 %size)
  ret ptr %out
}}
"""


_GATES = _gate("silu_row", _OF_SILU), _gate("gelu_row", _OF_GELU)
PROLOGUES = "\n".join(["declare float @llvm.sqrt.f32(float)", EXPONENTIAL, _NORM, *_GATES, _prepared()])
