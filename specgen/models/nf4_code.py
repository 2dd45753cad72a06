"""Writes the loops of the nf4 kernel in LLVM IR: a group of outputs of some rows, whose sums stay in the registers.

Each half of a vector of a record (`nf4_records`) is turned into 8-bit numbers by a table and multiplied by the same
four inputs of a row.
"""

from __future__ import annotations

from specgen.models.amx_registers import AMX_LINES, RELEASE
from specgen.models.dot_product import FULL_STEPS, OFFSET, SHORT_STEPS, add_products, declarations
from specgen.models.nf4_amx import BlockCode, amx_tile, unpack_code
from specgen.models.nf4_records import BLOCK, LEVELS, VECTORS_OF_BLOCK, constants, pack_code, record_bytes
from specgen.models.vector_code import LANES, PARAMETERS, CpuVectors, Tiles, end_of_outputs, load, spread

MAX_ROWS = {64: 12, 32: 4}
"""Rows that are computed at once, by bytes of a vector. Each row has two vectors of sums; there are 32 vectors of 64
bytes, or 16 of 32 bytes."""
FEW_ROWS = 3
"""Up to this number of rows, each has two sums of integers: a single one would wait for its last instruction."""
NF4_ROWS_ON_VECTORS = 5
"""Rows up to which vectors are as fast as AMX. On one core of an Intel Xeon (model 207), 1,024 weights times 4, 6, 12
rows took 49, 63 and 175 ns on vectors, and 52, 59 and 74 on AMX."""
AHEAD_BYTES = 8192
"""How far ahead of its use a weight is requested from memory, as in the int8 kernel."""
_HALVES = ("low", "high")


def levels(vectors: CpuVectors) -> list[int]:
    """Returns the values that products are computed with.

    They have one bit less without VNNI.
    """
    return list(LEVELS) if vectors.has_vnni else [round(level * SHORT_STEPS / FULL_STEPS) for level in LEVELS]


def nf4_tiles(vectors: CpuVectors, *, on_amx: bool = False) -> Tiles:
    """Returns the tiles for a kind of vectors, and the function `pack`, which writes weights.

    Args:
        vectors: What they compute with.
        on_amx: More than `NF4_ROWS_ON_VECTORS` rows are computed on AMX. Only with vectors of 64 bytes.
    """
    width, lanes = vectors.num_bytes, vectors.lanes
    if on_amx and vectors != CpuVectors(64):
        raise ValueError(f"AMX comes with vectors of 64 bytes, not with {vectors}")
    table = f"<{width} x i8>"
    declared = [*declarations(vectors), f"declare {table} @{_table_lookup(width)}({table}, {table})"]
    if lanes != LANES:
        floats = f"<{lanes} x float>"
        declared.append(f"declare {floats} @llvm.fma.v{lanes}f32({floats}, {floats}, {floats})")
    if on_amx:
        declared.append(_unpack_code(vectors))
    max_rows = AMX_LINES if on_amx else MAX_ROWS[width]
    tiles = [
        (_tile_on_amx if on_amx and num_rows > NF4_ROWS_ON_VECTORS else _tile)(num_rows, vectors)
        for num_rows in range(1, max_rows + 1)
    ]
    code = "\n".join([*declared, pack_code(vectors, OFFSET), *tiles])
    return Tiles(code, max_rows, lanes, FULL_STEPS, _offset(vectors))


def _offset(vectors: CpuVectors) -> int:
    """Returns what is added to values, so that they are unsigned."""
    return OFFSET if vectors.has_vnni else SHORT_STEPS


def _table_lookup(width: int) -> str:
    return "llvm.x86.avx512.pshuf.b.512" if width == 64 else "llvm.x86.avx2.pshuf.b"


def _tile(num_rows: int, vectors: CpuVectors) -> str:
    """Returns a function that computes outputs `%first` to `%last`, in whole groups, of `num_rows` rows."""
    lanes = vectors.lanes
    lines = [
        f"define void @tile{num_rows}({PARAMETERS}) {{",
        "entry:",
        *_start(vectors),
        "  br label %blocks_loop",
        "blocks_loop:",
        *_add_block(num_rows, vectors),
        "finish:",
        *_finish(num_rows, lanes),
        *end_of_outputs("%output", lanes),
    ]
    return "\n".join(lines)


def _start(vectors: CpuVectors) -> list[str]:
    """Returns what begins the loop over the outputs: it finds the records of a group."""
    return [
        f"  %num_blocks = udiv i64 %size, {BLOCK}",
        f"  %group_bytes = mul i64 %num_blocks, {record_bytes(vectors)}",
        "  br label %outputs_loop",
        "outputs_loop:",
        "  %output = phi i64 [ %first, %entry ], [ %following, %finish ]",
        f"  %group = udiv i64 %output, {vectors.lanes}",
        "  %group_offset = mul i64 %group, %group_bytes",
        "  %first_record = getelementptr i8, ptr %values, i64 %group_offset",
    ]


def _finish(num_rows: int, lanes: int) -> list[str]:
    """Returns what adds biases to the sums of all rows, and stores them."""
    lines = load("biases", f"<{lanes} x float>", "bias", "float", "%output")
    for r in range(num_rows):
        lines += [
            f"  %biased{r} = fadd <{lanes} x float> %more{r}, %biases",
            f"  %line{r} = mul i64 %num_outputs, {r}",
            f"  %index{r} = add i64 %line{r}, %output",
            f"  %to{r} = getelementptr float, ptr %outputs, i64 %index{r}",
            f"  store <{lanes} x float> %biased{r}, ptr %to{r}, align 4",
        ]
    return lines


def _tile_on_amx(num_rows: int, vectors: CpuVectors) -> str:
    """Returns the same function on AMX."""
    lanes, rows = vectors.lanes, range(num_rows)
    facts = [line for r in rows for line in _facts_of_row(r, lanes, "%scales_block")]
    whole = [f"  %whole{r} = add <{lanes} x i32> %products{r}, %excesses{r}" for r in rows]
    scale = [*facts, *whole, *_scale_sums(num_rows, lanes)]
    finish = [*_finish(num_rows, lanes), *end_of_outputs("%output", lanes, [RELEASE])]
    return amx_tile(num_rows, BlockCode(BLOCK, record_bytes(vectors), _start(vectors), scale, finish))


def _add_block(num_rows: int, vectors: CpuVectors) -> list[str]:
    """Returns the loop over a group's records. The sums of each row are `%more0` and so on, float32."""
    lanes, rows = vectors.lanes, range(num_rows)
    floats = f"<{lanes} x float>"
    return [
        "  %block = phi i64 [ 0, %outputs_loop ], [ %block_next, %blocks_loop ]",
        "  %record = phi ptr [ %first_record, %outputs_loop ], [ %record_next, %blocks_loop ]",
        *[f"  %sum{r} = phi {floats} [ zeroinitializer, %outputs_loop ], [ %more{r}, %blocks_loop ]" for r in rows],
        *_requests(vectors),
        f"  %inputs_offset = mul i64 %block, {BLOCK}",
        *[line for r in rows for line in (*_inputs_of_row(r), *_facts_of_row(r, lanes, "%block"))],
        *_products(num_rows, vectors),
        *_scale_sums(num_rows, lanes),
        "  %block_next = add i64 %block, 1",
        f"  %record_next = getelementptr i8, ptr %record, i64 {record_bytes(vectors)}",
        "  %blocks_more = icmp ult i64 %block_next, %num_blocks",
        "  br i1 %blocks_more, label %blocks_loop, label %finish",
    ]


def _requests(vectors: CpuVectors) -> list[str]:
    """Returns what requests a later record from memory."""
    lines = []
    for line in range(0, record_bytes(vectors), 64):
        lines += [
            f"  %ahead{line} = getelementptr i8, ptr %record, i64 {AHEAD_BYTES + line}",
            f"  call void @llvm.prefetch.p0(ptr %ahead{line}, i32 0, i32 2, i32 1)",
        ]
    return lines


def _scale_sums(num_rows: int, lanes: int) -> list[str]:
    """Returns what adds a block's sums `%whole0` and so on to `%sum0` and so on, which become `%more0` and so on."""
    integers, floats = f"<{lanes} x i32>", f"<{lanes} x float>"
    lines = _scales(lanes)
    for r in range(num_rows):
        lines += [
            f"  %float{r} = sitofp {integers} %whole{r} to {floats}",
            f"  %factors{r} = fmul {floats} %scales, %row_scales{r}",
            f"  %more{r} = call {floats} @llvm.fma.v{lanes}f32("
            f"{floats} %float{r}, {floats} %factors{r}, {floats} %sum{r})",
        ]
    return lines


def _products(num_rows: int, vectors: CpuVectors) -> list[str]:
    """Returns what computes `%whole0` and so on: a block's sums of products of each row, its excesses added."""
    rows, lanes = range(num_rows), vectors.lanes
    lines = []
    sums = {(r, half): f"%excesses{r}" if half == "low" else "zeroinitializer" for r in rows for half in _HALVES}
    for vector in VECTORS_OF_BLOCK:
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
    return lines + [f"  %whole{r} = add <{lanes} x i32> {sums[r, 'low']}, {sums[r, 'high']}" for r in rows]


def _unpack_code(vectors: CpuVectors) -> str:
    """Returns what `_tile_on_amx` needs besides."""
    values = [*_requests(vectors), *(line for vector in VECTORS_OF_BLOCK for line in _values(vector, vectors))]
    return unpack_code(values, [f"{half}{vector}" for vector in VECTORS_OF_BLOCK for half in _HALVES])


def _inputs_of_row(row: int) -> list[str]:
    """Returns what finds a row's inputs of a block."""
    return [
        f"  %row_offset{row} = mul i64 %size, {row}",
        f"  %inputs_at{row} = add i64 %row_offset{row}, %inputs_offset",
        f"  %inputs{row} = getelementptr i8, ptr %rows, i64 %inputs_at{row}",
    ]


def _facts_of_row(row: int, lanes: int, block: str) -> list[str]:
    """Returns what loads a row's scale and excess of a block."""
    r = row
    return [
        f"  %fact_offset{r} = mul i64 %num_blocks, {r}",
        f"  %fact{r} = add i64 %fact_offset{r}, {block}",
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
    fifteen = constants("i8", [15] * width)
    table = constants("i8", [unsigned[index % 16] for index in range(width)])
    return [
        *_from_record(f"bytes{v}", kind, kind, v),
        f"  %low_index{v} = and {kind} %bytes{v}, {fifteen}",
        f"  %pairs{v} = bitcast {kind} %bytes{v} to {pairs}",
        f"  %moved{v} = lshr {pairs} %pairs{v}, {constants('i16', [4] * (width // 2))}",
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
        *_from_record("short_scales", f"<{lanes} x i16>", "i16", 2 * len(VECTORS_OF_BLOCK) * lanes),
        f"  %long_scales = zext <{lanes} x i16> %short_scales to <{lanes} x i32>",
        f"  %moved_scales = shl <{lanes} x i32> %long_scales, {constants('i32', [16] * lanes)}",
        f"  %scales = bitcast <{lanes} x i32> %moved_scales to <{lanes} x float>",
    ]
