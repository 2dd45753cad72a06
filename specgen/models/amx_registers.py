"""Writes what all kernels on AMX need in LLVM IR: its instructions and the shapes of its registers.

AMX has eight registers of up to 16 lines of up to 64 bytes. Its products multiply each line of one by each column of
another and add the result to a third. A line of the second has several values of each column: four bytes. Intel calls
registers tiles and lines rows; here, tiles are functions, and rows are inputs.

See Intel's "64 and IA-32 Architectures Software Developer's Manual", volume 1, chapter "Programming with Intel AMX".
"""

from __future__ import annotations

from collections.abc import Sequence

AMX_LINES = 16
"""Lines of a register, and its columns, at most."""
AMX_OUTPUTS = 2 * AMX_LINES
"""Outputs that are computed at once in int8 and bfloat16. With two groups of rows, their sums fill four registers."""
LINE_BYTES = 64
REGISTER_BYTES = AMX_LINES * LINE_BYTES
NUM_REGISTERS = 8
RELEASE = "  call void @llvm.x86.tilerelease()"
_PALETTE, _BYTES_AT = 1, 16
"""All shapes are described by 64 bytes. The first is the palette; at 16 begin the bytes of each register's lines."""


def amx_declarations(product: str) -> str:
    """Returns the declarations of the instructions, with that of a product."""
    return f"""
declare void @llvm.x86.ldtilecfg(ptr)
declare void @llvm.x86.tilerelease()
declare void @llvm.x86.tilezero(i8 immarg)
declare void @llvm.x86.tileloadd64(i8 immarg, ptr, i64)
declare void @llvm.x86.tilestored64(i8 immarg, ptr, i64)
declare void @{product}(i8 immarg, i8 immarg, i8 immarg)
"""


def shape_registers(num_lines: Sequence[int] = (), narrow: Sequence[int] = ()) -> str:
    """Returns what gives the registers their shapes, at the start of a function.

    Args:
        num_lines: Of the first registers. All others have `AMX_LINES`.
        narrow: Registers whose lines have `%line_bytes`, instead of 64.
    """
    lines = [*num_lines, *[AMX_LINES] * (NUM_REGISTERS - len(num_lines))]
    shape = [_PALETTE] + [0] * (_BYTES_AT - 1) + [LINE_BYTES, 0] * NUM_REGISTERS + [0] * 16 + lines + [0] * 8
    values = ", ".join(f"i8 {value}" for value in shape)
    code = [
        f"  %shape = alloca [{len(shape)} x i8], align 64",
        f"  store <{len(shape)} x i8> <{values}>, ptr %shape, align 64",
    ]
    if narrow:
        code.append("  %line_short = trunc i64 %line_bytes to i16")
    for register in narrow:
        code += [
            f"  %line_of{register} = getelementptr i8, ptr %shape, i64 {_BYTES_AT + 2 * register}",
            f"  store i16 %line_short, ptr %line_of{register}, align 2",
        ]
    return "\n".join([*code, "  call void @llvm.x86.ldtilecfg(ptr %shape)"])
