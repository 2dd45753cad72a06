"""Writes pieces that kernels share in LLVM IR: loads, constants, the exponential and the softmax of float32 vectors."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PARAMETERS = (
    "ptr %values, ptr %weight_scales, ptr %bias, ptr %rows, ptr %row_scales, ptr %excesses, ptr %outputs, "
    "i64 %num_outputs, i64 %size, i64 %first, i64 %last, i64 %share, i64 %num_shares"
)
"""Parameters of each tile: it computes outputs `%first` to `%last` of a group of rows.

If several groups compute the same outputs in turn, the tile requests the share `%share` of `%num_shares` of the next
outputs' weights from memory.

The kernels' instructions multiply unsigned by signed bytes, so weights are greater by an offset; `%excesses` holds what
has to be added to a row's sums for that.
"""

PACKED = ("rows_claimed", "rows_done", "inputs_claimed", "inputs_done")
"""Those of `ARGUMENTS` that count the rows, and the inputs of all rows, which threads have claimed and have packed."""
WRITTEN = ("inputs", *PACKED, "counter")
"""The last of `ARGUMENTS`, which the kernels write: the address of the rows, and what is claimed; `counter` counts
outputs."""
ARGUMENTS = {
    "values": "ptr",
    "weight_scales": "ptr",
    "bias": "ptr",
    "rows": "ptr",
    "columns": "ptr",
    "row_scales": "ptr",
    "excesses": "ptr",
    "outputs": "ptr",
    "num_outputs": "i64",
    "size": "i64",
    "num_rows": "i64",
    "num_scales": "i64",
    "prologue": "i64",
    "prepared": "ptr",
    "norm_weight": "ptr",
    "epsilon": "float",
    "chunk": "i64",
    "unit": "i64",
    "num_threads": "i64",
    "inputs": "ptr",
    **dict.fromkeys(WRITTEN[1:], "i64"),
}
"""What the kernels of weights read at the address that they are given: 64 bits each, in this order.

`rows` and `columns` are memory for packed rows, `prepared` for the rows after a prologue; `num_scales` counts the
scales, and the excesses, of each row; a thread claims `chunk` outputs at once at most and `unit` at least (see
`CLAIM`).
"""

NOTHING, NORM, SILU, GELU = range(4)
"""Kinds of prologues: a root mean square norm, or an activation of the first half of a row times the second half. GELU
is its approximation by tanh."""


@dataclass(frozen=True, slots=True)
class CpuVectors:
    """Vectors that kernels compute with.

    Args:
        num_bytes: 64 or 32.
        has_vnni: The CPU has VNNI: an instruction that multiplies bytes and adds four products to each sum.
    """

    num_bytes: int
    has_vnni: bool = True

    @property
    def lanes(self) -> int:
        """Sums in a vector, of 32 bits each."""
        return self.num_bytes // 4


@dataclass(frozen=True, slots=True)
class Tiles:
    """What a weight format adds to the kernels.

    Args:
        text: In LLVM IR: the functions `tile1`, `tile2` ..., which compute some outputs of so many rows.
        max_rows: The largest number of rows that they compute.
        num_outputs: Outputs that they compute at once.
        input_steps: Inputs are rounded to whole numbers up to this one.
        weight_offset: What is added to weights, so that they are unsigned.
        max_parts: Up to this number of groups, the rows compute so many outputs in turn. It pays where the kernel waits
            for its weights, and as long as the rows stay in the nearest cache.
    """

    text: str
    max_rows: int
    num_outputs: int
    input_steps: int
    weight_offset: int
    max_parts: int = 1


LANES = 16
"""float32 in a vector of 64 bytes."""
FLOATS, _INTEGERS = f"<{LANES} x float>", f"<{LANES} x i32>"


def constant(value: str, kind: str = "float") -> str:
    """Returns a constant with the same value in all lanes."""
    return "<" + ", ".join([f"{kind} {value}"] * LANES) + ">"


def hexadecimal(value: float) -> str:
    """Returns a float32 as LLVM writes it: the bits of the same number in 64 bits."""
    single = struct.unpack("<f", struct.pack("<f", value))[0]
    return f"0x{struct.unpack('<Q', struct.pack('<d', single))[0]:016X}"


LEAST_EXPONENT = -87.0
"""Smaller exponents are raised to it: their exponential would not be a normal number."""
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_TAYLOR = (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0)


def _exponential() -> str:
    """Returns a function that computes the exponential of numbers up to 0, off by at most two units in the last place.

    x is n log 2 + r with a whole n, so that the exponential is 2^n times that of r, whose series is short.
    """
    fma = f"call {FLOATS} @llvm.fma.v{LANES}f32"
    lines = [f"  %sum0 = fadd {FLOATS} {constant(hexadecimal(_TAYLOR[0]))}, zeroinitializer"]
    for index, term in enumerate(_TAYLOR[1:], 1):
        operands = f"{FLOATS} %sum{index - 1}, {FLOATS} %r, {FLOATS} {constant(hexadecimal(term))}"
        lines.append(f"  %sum{index} = {fma}({operands})")
    series = "\n".join(lines)
    return f"""
declare {FLOATS} @llvm.fma.v{LANES}f32({FLOATS}, {FLOATS}, {FLOATS})
declare {FLOATS} @llvm.rint.v{LANES}f32({FLOATS})
declare float @llvm.vector.reduce.fadd.v{LANES}f32(float, {FLOATS})
define internal {FLOATS} @exponential({FLOATS} %given) alwaysinline {{
  %is_less = fcmp olt {FLOATS} %given, {constant(hexadecimal(LEAST_EXPONENT))}
  %x = select <{LANES} x i1> %is_less, {FLOATS} {constant(hexadecimal(LEAST_EXPONENT))}, {FLOATS} %given
  %turns = fmul {FLOATS} %x, {constant(hexadecimal(1.4426950408889634))}
  %n = call {FLOATS} @llvm.rint.v{LANES}f32({FLOATS} %turns)
  %r_high = {fma}({FLOATS} %n, {FLOATS} {constant(hexadecimal(-_LN2_HIGH))}, {FLOATS} %x)
  %r = {fma}({FLOATS} %n, {FLOATS} {constant(hexadecimal(-_LN2_LOW))}, {FLOATS} %r_high)
{series}
  %is_number = fcmp ord {FLOATS} %n, zeroinitializer
  %safe = select <{LANES} x i1> %is_number, {FLOATS} %n, {FLOATS} zeroinitializer
  %whole = fptosi {FLOATS} %safe to {_INTEGERS}
  %biased = add {_INTEGERS} %whole, {constant("127", "i32")}
  %bits = shl {_INTEGERS} %biased, {constant("23", "i32")}
  %power = bitcast {_INTEGERS} %bits to {FLOATS}
  %result = fmul {FLOATS} %sum{len(_TAYLOR) - 1}, %power
  ret {FLOATS} %result
}}
"""


EXPONENTIAL = _exponential()

SOFTMAX = f"""
{EXPONENTIAL}
declare float @llvm.vector.reduce.fmax.v{LANES}f32({FLOATS})
define internal float @weights(ptr %scores, i64 %count) {{
entry:
  br label %fill
fill:
  %unused = phi i64 [ %count, %entry ], [ %unused_next, %filling ]
  %rest = urem i64 %unused, {LANES}
  %is_full = icmp eq i64 %rest, 0
  br i1 %is_full, label %find, label %filling
filling:
  %unused_at = getelementptr float, ptr %scores, i64 %unused
  store float {hexadecimal(float("-inf"))}, ptr %unused_at, align 4
  %unused_next = add i64 %unused, 1
  br label %fill
find:
  %i = phi i64 [ 0, %fill ], [ %i_next, %find ]
  %largest = phi {FLOATS} [ {constant(hexadecimal(float("-inf")))}, %fill ], [ %larger, %find ]
  %at = getelementptr float, ptr %scores, i64 %i
  %x = load {FLOATS}, ptr %at, align 4
  %is_larger = fcmp ogt {FLOATS} %x, %largest
  %larger = select <{LANES} x i1> %is_larger, {FLOATS} %x, {FLOATS} %largest
  %i_next = add i64 %i, {LANES}
  %find_more = icmp ult i64 %i_next, %count
  br i1 %find_more, label %find, label %found
found:
  %max = call nnan float @llvm.vector.reduce.fmax.v{LANES}f32({FLOATS} %larger)
  %max_first = insertelement {FLOATS} poison, float %max, i32 0
  %maxima = shufflevector {FLOATS} %max_first, {FLOATS} poison, <{LANES} x i32> zeroinitializer
  br label %add
add:
  %j = phi i64 [ 0, %found ], [ %j_next, %add ]
  %sum = phi {FLOATS} [ zeroinitializer, %found ], [ %sum_next, %add ]
  %from = getelementptr float, ptr %scores, i64 %j
  %score = load {FLOATS}, ptr %from, align 4
  %below = fsub {FLOATS} %score, %maxima
  %weight = call {FLOATS} @exponential({FLOATS} %below)
  store {FLOATS} %weight, ptr %from, align 4
  %sum_next = fadd {FLOATS} %sum, %weight
  %j_next = add i64 %j, {LANES}
  %add_more = icmp ult i64 %j_next, %count
  br i1 %add_more, label %add, label %done
done:
  %total = call reassoc float @llvm.vector.reduce.fadd.v{LANES}f32(float 0.0, {FLOATS} %sum_next)
  ret float %total
}}
"""
"""`weights` turns scores into exponentials of their differences from the largest, and returns the sum.

The memory of the scores holds whole vectors.
"""


def load_arguments(order: Mapping[str, str], names: Sequence[str]) -> list[str]:
    """Returns what loads some of the arguments at `%arguments`, by their names.

    Args:
        order: Types of all arguments by their names, in their order; 64 bits each.
    """
    lines = []
    for index, (name, kind) in enumerate(order.items()):
        if name in names:
            lines += [
                f"  %{name}_at = getelementptr i64, ptr %arguments, i64 {index}",
                f"  %{name} = load {kind}, ptr %{name}_at",
            ]
    return lines


def call_tile(max_rows: int, arguments: str) -> str:
    """Returns what calls the tile of `%count` rows and goes to `next`."""
    numbers = range(1, max_rows + 1)
    cases = "\n".join(f"    i64 {number}, label %call{number}" for number in numbers)
    calls = "\n".join(f"call{number}:\n  call void @tile{number}({arguments})\n  br label %next" for number in numbers)
    return f"  switch i64 %count, label %exit [\n{cases}\n  ]\n{calls}"


def end_of_outputs(output: str, step: int, last_lines: Sequence[str] = ()) -> list[str]:
    """Returns the end of a tile: its loop goes on `step` outputs after this one, up to `%last`; then `last_lines`."""
    return [
        f"  %following = add i64 {output}, {step}",
        "  %outputs_more = icmp ult i64 %following, %last",
        "  br i1 %outputs_more, label %outputs_loop, label %exit",
        "exit:",
        *last_lines,
        "  ret void",
        "}",
    ]


def spread(name: str, kind: str, value: str, lanes: int) -> list[str]:
    """Returns what copies a value to all lanes of a vector."""
    vector = f"<{lanes} x {kind}>"
    return [
        f"  %{name}_first = insertelement {vector} poison, {kind} %{value}, i32 0",
        f"  %{name} = shufflevector {vector} %{name}_first, {vector} poison, <{lanes} x i32> zeroinitializer",
    ]


def load(name: str, kind: str, array: str, element: str, index: str) -> list[str]:
    """Returns what loads a value at an index of an array; `element` is the type that the index counts."""
    alignment = {"i8": 1, "i16": 2, "ptr": 8, "i64": 8}.get(element, 4)
    return [
        f"  %{name}_at = getelementptr {element}, ptr %{array}, i64 {index}",
        f"  %{name} = load {kind}, ptr %{name}_at, align {alignment}",
    ]
