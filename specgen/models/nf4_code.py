"""Writes the loops of the nf4 kernel in LLVM IR: a group of outputs of some rows, whose sums stay in the registers.

A weight is a sequence of records: for each group of outputs, for each block of inputs, its values and its scales. A
vector of values holds two times four inputs of each output of the group, in the low and the high halves of its bytes:
each half is turned into 8-bit numbers by a table and multiplied by the same four inputs of a row.
"""

from __future__ import annotations

from itertools import pairwise

from specgen.models.dot_product import FULL_STEPS, OFFSET, SHORT_STEPS, add_products, declarations
from specgen.models.vector_code import LANES, PARAMETERS, CpuVectors, Tiles, end_of_outputs, load, spread

BLOCK = 64
"""Inputs that share a scale, as in bitsandbytes."""
LEVELS = (-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127)
"""The values of nf4 (Dettmers et al. 2023, arXiv:2305.14314, appendix E), in steps of 1/127."""
MAX_ROWS = {64: 12, 32: 4}
"""Rows that are computed at once, by bytes of a vector. Each row has two vectors of sums; there are 32 vectors of 64
bytes, or 16 of 32 bytes."""
FEW_ROWS = 3
"""Up to this number of rows, each has two sums of integers: a single one would wait for its last instruction."""
AHEAD_BYTES = 8192
"""How far ahead of its use a weight is requested from memory, as in the int8 kernel."""
_VECTORS = range(BLOCK // 8)
_HALVES = ("low", "high")


def record_bytes(vectors: CpuVectors) -> int:
    """Returns the bytes of a record: `BLOCK` inputs of a group in 4 bits each, and scales in bfloat16."""
    return len(_VECTORS) * vectors.num_bytes + 2 * vectors.lanes


def levels(vectors: CpuVectors) -> list[int]:
    """Returns the values that products are computed with.

    They have one bit less without VNNI.
    """
    return list(LEVELS) if vectors.has_vnni else [round(level * SHORT_STEPS / FULL_STEPS) for level in LEVELS]


def nf4_tiles(vectors: CpuVectors) -> Tiles:
    """Returns the tiles for a kind of vectors, and the function `pack`, which writes weights."""
    width, lanes = vectors.num_bytes, vectors.lanes
    table = f"<{width} x i8>"
    declared = [*declarations(vectors), f"declare {table} @{_table_lookup(width)}({table}, {table})"]
    if lanes != LANES:
        floats = f"<{lanes} x float>"
        declared.append(f"declare {floats} @llvm.fma.v{lanes}f32({floats}, {floats}, {floats})")
    max_rows = MAX_ROWS[width]
    tiles = [_tile(num_rows, vectors) for num_rows in range(1, max_rows + 1)]
    return Tiles("\n".join([*declared, _pack(vectors), *tiles]), max_rows, lanes, FULL_STEPS, _offset(vectors))


def _offset(vectors: CpuVectors) -> int:
    """Returns what is added to values, so that they are unsigned."""
    return OFFSET if vectors.has_vnni else SHORT_STEPS


def _table_lookup(width: int) -> str:
    return "llvm.x86.avx512.pshuf.b.512" if width == 64 else "llvm.x86.avx2.pshuf.b"


def _tile(num_rows: int, vectors: CpuVectors) -> str:
    """Returns a function that computes outputs `%first` to `%last`, in whole groups, of `num_rows` rows."""
    lanes, rows = vectors.lanes, range(num_rows)
    lines = [
        f"define void @tile{num_rows}({PARAMETERS}) {{",
        "entry:",
        f"  %num_blocks = udiv i64 %size, {BLOCK}",
        f"  %group_bytes = mul i64 %num_blocks, {record_bytes(vectors)}",
        "  br label %outputs_loop",
        "outputs_loop:",
        "  %output = phi i64 [ %first, %entry ], [ %following, %finish ]",
        f"  %group = udiv i64 %output, {lanes}",
        "  %group_offset = mul i64 %group, %group_bytes",
        "  %first_record = getelementptr i8, ptr %values, i64 %group_offset",
        "  br label %blocks_loop",
        "blocks_loop:",
        *_add_block(num_rows, vectors),
        "finish:",
        *load("biases", f"<{lanes} x float>", "bias", "float", "%output"),
    ]
    for r in rows:
        lines += [
            f"  %biased{r} = fadd <{lanes} x float> %more{r}, %biases",
            f"  %line{r} = mul i64 %num_outputs, {r}",
            f"  %index{r} = add i64 %line{r}, %output",
            f"  %to{r} = getelementptr float, ptr %outputs, i64 %index{r}",
            f"  store <{lanes} x float> %biased{r}, ptr %to{r}, align 4",
        ]
    return "\n".join([*lines, *end_of_outputs("%output", lanes)])


def _add_block(num_rows: int, vectors: CpuVectors) -> list[str]:
    """Returns the loop over a group's records. The sums of each row are `%more0` and so on, float32."""
    lanes, rows = vectors.lanes, range(num_rows)
    integers, floats = f"<{lanes} x i32>", f"<{lanes} x float>"
    lines = [
        "  %block = phi i64 [ 0, %outputs_loop ], [ %block_next, %blocks_loop ]",
        "  %record = phi ptr [ %first_record, %outputs_loop ], [ %record_next, %blocks_loop ]",
    ]
    lines += [f"  %sum{r} = phi {floats} [ zeroinitializer, %outputs_loop ], [ %more{r}, %blocks_loop ]" for r in rows]
    for line in range(0, record_bytes(vectors), 64):
        lines += [
            f"  %ahead{line} = getelementptr i8, ptr %record, i64 {AHEAD_BYTES + line}",
            f"  call void @llvm.prefetch.p0(ptr %ahead{line}, i32 0, i32 2, i32 1)",
        ]
    lines.append(f"  %inputs_offset = mul i64 %block, {BLOCK}")
    sums: dict[tuple[int, str], str] = {}
    for r in rows:
        lines += _row_of_block(r, lanes)
        sums[r, "low"], sums[r, "high"] = f"%excesses{r}", "zeroinitializer"
    for vector in _VECTORS:
        lines += _values(vector, vectors)
        for half_index, half in enumerate(_HALVES):
            for r in rows:
                name, key = f"{half}{vector}_{r}", (r, half if num_rows <= FEW_ROWS else "low")
                lines += [
                    *load(f"input_{name}", "i32", f"inputs{r}", "i32", str(2 * vector + half_index)),
                    *spread(f"inputs_{name}", "i32", f"input_{name}", lanes),
                    *add_products(f"sum_{name}", sums[key], f"%{half}{vector}", f"%inputs_{name}", vectors),
                ]
                sums[key] = f"%sum_{name}"
    lines += _scales(lanes)
    for r in rows:
        lines += [
            f"  %whole{r} = add {integers} {sums[r, 'low']}, {sums[r, 'high']}",
            f"  %float{r} = sitofp {integers} %whole{r} to {floats}",
            f"  %factors{r} = fmul {floats} %scales, %row_scales{r}",
            f"  %more{r} = call {floats} @llvm.fma.v{lanes}f32("
            f"{floats} %float{r}, {floats} %factors{r}, {floats} %sum{r})",
        ]
    return [
        *lines,
        "  %block_next = add i64 %block, 1",
        f"  %record_next = getelementptr i8, ptr %record, i64 {record_bytes(vectors)}",
        "  %blocks_more = icmp ult i64 %block_next, %num_blocks",
        "  br i1 %blocks_more, label %blocks_loop, label %finish",
    ]


def _row_of_block(row: int, lanes: int) -> list[str]:
    """Returns what finds a row's inputs, scale and excess of a block."""
    r = row
    return [
        f"  %row_offset{r} = mul i64 %size, {r}",
        f"  %inputs_at{r} = add i64 %row_offset{r}, %inputs_offset",
        f"  %inputs{r} = getelementptr i8, ptr %rows, i64 %inputs_at{r}",
        f"  %fact_offset{r} = mul i64 %num_blocks, {r}",
        f"  %fact{r} = add i64 %fact_offset{r}, %block",
        *load(f"excess{r}", "i32", "excesses", "i32", f"%fact{r}"),
        *spread(f"excesses{r}", "i32", f"excess{r}", lanes),
        *load(f"row_scale{r}", "float", "row_scales", "float", f"%fact{r}"),
        *spread(f"row_scales{r}", "float", f"row_scale{r}", lanes),
    ]


def _values(vector: int, vectors: CpuVectors) -> list[str]:
    """Returns what turns both halves of a vector's bytes into unsigned weights."""
    v, width, lanes = vector, vectors.num_bytes, vectors.lanes
    kind, pairs = f"<{width} x i8>", f"<{width // 2} x i16>"
    unsigned = [level + _offset(vectors) for level in levels(vectors)]
    fifteen = _constant("i8", [15] * width)
    table = _constant("i8", [unsigned[index % 16] for index in range(width)])
    return [
        *_from_record(f"bytes{v}", kind, kind, v),
        f"  %low_index{v} = and {kind} %bytes{v}, {fifteen}",
        f"  %pairs{v} = bitcast {kind} %bytes{v} to {pairs}",
        f"  %moved{v} = lshr {pairs} %pairs{v}, {_constant('i16', [4] * (width // 2))}",
        f"  %moved_bytes{v} = bitcast {pairs} %moved{v} to {kind}",
        f"  %high_index{v} = and {kind} %moved_bytes{v}, {fifteen}",
        *[
            line
            for half in _HALVES
            for line in (
                f"  %{half}_bytes{v} = call {kind} @{_table_lookup(width)}({kind} {table}, {kind} %{half}_index{v})",
                f"  %{half}{v} = bitcast {kind} %{half}_bytes{v} to <{lanes} x i32>",
            )
        ],
    ]


def _from_record(name: str, kind: str, element: str, index: int) -> list[str]:
    """Returns what loads a value of a record, whose address is a multiple of two."""
    return [
        f"  %{name}_at = getelementptr {element}, ptr %record, i64 {index}",
        f"  %{name} = load {kind}, ptr %{name}_at, align 2",
    ]


def _scales(lanes: int) -> list[str]:
    """Returns what loads a record's scales: a bfloat16 is the upper half of a float32."""
    return [
        *_from_record("short_scales", f"<{lanes} x i16>", "i16", 2 * len(_VECTORS) * lanes),
        f"  %long_scales = zext <{lanes} x i16> %short_scales to <{lanes} x i32>",
        f"  %moved_scales = shl <{lanes} x i32> %long_scales, {_constant('i32', [16] * lanes)}",
        f"  %scales = bitcast <{lanes} x i32> %moved_scales to <{lanes} x float>",
    ]


def _constant(kind: str, values: list[int]) -> str:
    return "<" + ", ".join(f"{kind} {value}" for value in values) + ">"


def _pack(vectors: CpuVectors) -> str:
    """Returns a function that writes records.

    Its arguments are the addresses of the values of a group, `[outputs, inputs]` in bytes that are greater by 128, of
    their scales in bfloat16 `[outputs, blocks]`, and of the records; then the number of blocks.
    """
    width, lanes = vectors.num_bytes, vectors.lanes
    bounds = [(low + high) // 2 + OFFSET for low, high in pairwise(LEVELS)]
    lines = []
    code = "zeroinitializer"
    for index, bound in enumerate(bounds):
        lines += [
            f"  %is{index} = icmp ugt <{BLOCK} x i8> %values64, {_constant('i8', [bound] * BLOCK)}",
            f"  %one{index} = zext <{BLOCK} x i1> %is{index} to <{BLOCK} x i8>",
            f"  %code{index} = add <{BLOCK} x i8> {code}, %one{index}",
        ]
        code = f"%code{index}"
    fours = BLOCK // 4
    for half, first in (("low", 0), ("high", 1)):
        picked = _constant("i32", list(range(first, fours, 2)))
        lines.append(
            f"  %{half} = shufflevector <{fours} x i32> %fours, <{fours} x i32> poison, <{fours // 2} x i32> {picked}"
        )
    stores = []
    for vector in _VECTORS:
        stores += [
            f"  %word{vector} = extractelement <{fours // 2} x i32> %words, i32 {vector}",
            f"  %word_at{vector} = getelementptr i8, ptr %place, i64 {vector * width}",
            f"  store i32 %word{vector}, ptr %word_at{vector}, align 2",
        ]
    classified, stored = "\n".join(lines[: 3 * len(bounds)]), "\n".join(stores)
    halves = "\n".join(lines[3 * len(bounds) :])
    return f"""
define void @pack(ptr %values, ptr %scales, ptr %records, i64 %num_blocks) {{
entry:
  br label %blocks
blocks:
  %block = phi i64 [ 0, %entry ], [ %block_next, %block_end ]
  %record_offset = mul i64 %block, {record_bytes(vectors)}
  %record = getelementptr i8, ptr %records, i64 %record_offset
  %scales_here = getelementptr i8, ptr %record, i64 {len(_VECTORS) * width}
  br label %outputs
outputs:
  %output = phi i64 [ 0, %blocks ], [ %output_next, %outputs ]
  %row = mul i64 %output, %num_blocks
  %index = add i64 %row, %block
  %from = getelementptr <{BLOCK} x i8>, ptr %values, i64 %index
  %values64 = load <{BLOCK} x i8>, ptr %from, align 1
{classified}
  %fours = bitcast <{BLOCK} x i8> {code} to <{fours} x i32>
{halves}
  %high_moved = shl <{fours // 2} x i32> %high, {_constant("i32", [4] * (fours // 2))}
  %words = or <{fours // 2} x i32> %low, %high_moved
  %place = getelementptr i32, ptr %record, i64 %output
{stored}
  %scale_from = getelementptr i16, ptr %scales, i64 %index
  %scale = load i16, ptr %scale_from, align 2
  %scale_to = getelementptr i16, ptr %scales_here, i64 %output
  store i16 %scale, ptr %scale_to, align 2
  %output_next = add i64 %output, 1
  %outputs_more = icmp ult i64 %output_next, {lanes}
  br i1 %outputs_more, label %outputs, label %block_end
block_end:
  %block_next = add i64 %block, 1
  %blocks_more = icmp ult i64 %block_next, %num_blocks
  br i1 %blocks_more, label %blocks, label %exit
exit:
  ret void
}}
"""
