"""Writes the loops of the nf4 kernel on AMX in LLVM IR: a group of outputs of up to 16 rows.

The weights of some blocks of inputs are turned into bytes, as on vectors, and stored as lines of registers: each line
has four inputs of each output. Then one instruction multiplies each block by the inputs of all rows, and at last the
sums are scaled. Each of the three has a loop of its own, because a register that is loaded waits for recent stores to
the same memory. The sums are the same whole numbers as on vectors, and are scaled in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specgen.models.amx_registers import (
    AMX_LINES,
    LINE_BYTES,
    REGISTER_BYTES,
    amx_declarations,
    shape_registers,
)
from specgen.models.vector_code import FLOATS, PARAMETERS

MANY_BLOCKS = 3
"""Blocks that go through each loop at once. So few, the loops overlap. On one core of an Intel Xeon (model 207), 1,024
weights times 8 and 16 rows took 63 and 90 ns with 3 blocks, 91 and 126 with 16."""
_SUMS, _ROWS, _WEIGHTS = range(3)
"""The registers that are used."""
_PRODUCT = "llvm.x86.tdpbsud"
_INTEGERS = f"<{AMX_LINES} x i32>"


@dataclass(frozen=True, slots=True)
class BlockCode:
    """What the format adds to the loops.

    Args:
        num_inputs: Inputs of a block.
        num_bytes: Bytes of its record.
        start: Begins the loop over the outputs: `%num_blocks`, and `%first_record` of a group.
        scale: Adds the products of the block `%scales_block`, whose record is at `%record`, to the sums of all rows:
            `%products0` to `%sum0`, which becomes `%more0`, and so on.
        finish: Stores the sums of all rows, and ends the function after the outputs.
    """

    num_inputs: int
    num_bytes: int
    start: Sequence[str]
    scale: Sequence[str]
    finish: Sequence[str]


def unpack_code(values: Sequence[str], names: Sequence[str]) -> str:
    """Returns the function `unpack_block`, which turns a record's values into lines of a register.

    Args:
        values: Turns the values at `%record` into vectors, and requests a later record from memory.
        names: Of these, in the order of the inputs: each has four inputs of each output.
    """
    lines = []
    for index, name in enumerate(names):
        lines += [
            f"  %line{index} = getelementptr i8, ptr %lines, i64 {index * LINE_BYTES}",
            f"  store {_INTEGERS} %{name}, ptr %line{index}, align 64",
        ]
    unpack = ["define internal void @unpack_block(ptr %record, ptr %lines) alwaysinline {", *values, *lines]
    declared = [amx_declarations(_PRODUCT)]
    return "\n".join([*declared, *unpack, "  ret void", "}"])


def amx_tile(num_rows: int, code: BlockCode) -> str:
    """Returns a function that computes outputs `%first` to `%last`, in whole groups, of `num_rows` rows."""
    rows, sums_bytes = range(num_rows), num_rows * LINE_BYTES
    sums = [f"  %sum{r} = phi {FLOATS} [ %given{r}, %products_loop ], [ %more{r}, %scales_loop ]" for r in rows]
    lines = [
        f"define void @tile{num_rows}({PARAMETERS}) {{",
        "entry:",
        f"  %weight_lines = alloca [{MANY_BLOCKS * REGISTER_BYTES} x i8], align 64",
        f"  %sum_lines = alloca [{MANY_BLOCKS * sums_bytes} x i8], align 64",
        shape_registers((num_rows, num_rows)),
        *code.start,
        "  br label %many_loop",
        "many_loop:",
        "  %start = phi i64 [ 0, %outputs_loop ], [ %limit, %many_end ]",
        *[f"  %given{r} = phi {FLOATS} [ zeroinitializer, %outputs_loop ], [ %more{r}, %many_end ]" for r in rows],
        f"  %wanted = add i64 %start, {MANY_BLOCKS}",
        "  %limit = call i64 @llvm.umin.i64(i64 %wanted, i64 %num_blocks)",
        "  br label %weights_loop",
        *_each_block("weights", "many_loop"),
        *_at("unpacked", "weight_lines", "weights", REGISTER_BYTES),
        *_record("weights_record", "weights", code.num_bytes),
        "  call void @unpack_block(ptr %weights_record, ptr %unpacked)",
        *_next_block("weights", "products_loop"),
        *_each_block("products", "weights_loop"),
        *_at("lines", "weight_lines", "products", REGISTER_BYTES),
        *_at("sums_to", "sum_lines", "products", sums_bytes),
        f"  %products_inputs = mul i64 %products_block, {code.num_inputs}",
        "  %inputs = getelementptr i8, ptr %rows, i64 %products_inputs",
        f"  call void @llvm.x86.tilezero(i8 {_SUMS})",
        f"  call void @llvm.x86.tileloadd64(i8 {_ROWS}, ptr %inputs, i64 %size)",
        f"  call void @llvm.x86.tileloadd64(i8 {_WEIGHTS}, ptr %lines, i64 {LINE_BYTES})",
        f"  call void @{_PRODUCT}(i8 {_SUMS}, i8 {_ROWS}, i8 {_WEIGHTS})",
        f"  call void @llvm.x86.tilestored64(i8 {_SUMS}, ptr %sums_to, i64 {LINE_BYTES})",
        *_next_block("products", "scales_loop"),
        *_each_block("scales", "products_loop", sums),
        *_at("sums_from", "sum_lines", "scales", sums_bytes),
        *_record("record", "scales", code.num_bytes),
        *[
            line
            for r in rows
            for line in (
                f"  %products{r}_at = getelementptr i8, ptr %sums_from, i64 {r * LINE_BYTES}",
                f"  %products{r} = load {_INTEGERS}, ptr %products{r}_at, align 64",
            )
        ],
        *code.scale,
        *_next_block("scales", "many_end"),
        "many_end:",
        "  %many_more = icmp ult i64 %limit, %num_blocks",
        "  br i1 %many_more, label %many_loop, label %finish",
        "finish:",
        *code.finish,
    ]
    return "\n".join(lines)


def _each_block(loop: str, before: str, values: Sequence[str] = ()) -> list[str]:
    """Returns the start of a loop over the blocks `%start` to `%limit`, with values that it changes."""
    return [
        f"{loop}_loop:",
        f"  %{loop}_block = phi i64 [ %start, %{before} ], [ %{loop}_next, %{loop}_loop ]",
        *values,
        f"  %{loop}_index = sub i64 %{loop}_block, %start",
    ]


def _next_block(loop: str, following: str) -> list[str]:
    return [
        f"  %{loop}_next = add i64 %{loop}_block, 1",
        f"  %{loop}_more = icmp ult i64 %{loop}_next, %limit",
        f"  br i1 %{loop}_more, label %{loop}_loop, label %{following}",
    ]


def _at(name: str, memory: str, loop: str, num_bytes: int) -> list[str]:
    """Returns what finds the memory of a loop's block."""
    return [
        f"  %{name}_offset = mul i64 %{loop}_index, {num_bytes}",
        f"  %{name} = getelementptr i8, ptr %{memory}, i64 %{name}_offset",
    ]


def _record(name: str, loop: str, num_bytes: int) -> list[str]:
    return [
        f"  %{name}_offset = mul i64 %{loop}_block, {num_bytes}",
        f"  %{name} = getelementptr i8, ptr %first_record, i64 %{name}_offset",
    ]
