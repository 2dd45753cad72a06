"""Writes the loops of the int8 kernel in LLVM IR: some outputs of some rows, whose sums stay in the registers."""

from __future__ import annotations

from specgen.models.dot_product import FULL_STEPS, OFFSET, SHORT_STEPS, add_products, declarations
from specgen.models.sums_code import add_lanes
from specgen.models.vector_code import PARAMETERS, CpuVectors, Tiles, end_of_outputs, load, spread

LINE_BYTES = 64
"""Bytes that come from memory at once. Inputs are a multiple of it."""
NUM_OUTPUTS = 4
"""Outputs that are computed at once."""
SHAPES = {CpuVectors(64): (4, 6), CpuVectors(32): (4, 3), CpuVectors(32, has_vnni=False): (2, 4)}
"""Outputs and rows of a loop over the inputs, whose sums are in registers: there are 32 of 64 bytes, or 16 of 32 bytes.
Without VNNI, products need some, too. More rows are computed in groups of about the same size."""
MAX_PARTS = 3
"""Groups of rows that compute the same outputs in turn: enough for 17 rows. Long prompts would take up to
12 % longer in turn, measured with 576 channels."""
AHEAD_BYTES = 8192
"""How far ahead of its use a weight is requested from memory, into the second cache. The CPU's own prefetching
ends at 4 KiB. Measured with 512 to 65,536: 8,192 is the fastest, and 15 to 35 % faster than nothing for eight rows."""


def int8_tiles(vectors: CpuVectors, few_rows: int | None = None) -> Tiles:
    """Returns the tiles for a kind of vectors.

    Args:
        vectors: What they compute with.
        few_rows: Rows that are computed at once, at most, if fewer than the registers hold.
    """
    max_rows = few_rows or SHAPES[vectors][1]
    text = "\n".join([*declarations(vectors), *(tile(num_rows, vectors) for num_rows in range(1, max_rows + 1))])
    input_steps = FULL_STEPS if vectors.has_vnni else SHORT_STEPS
    return Tiles(text, max_rows, NUM_OUTPUTS, input_steps, OFFSET, MAX_PARTS)


def tile(num_rows: int, vectors: CpuVectors) -> str:
    """Returns a function that computes outputs `%first` to `%last` of `num_rows` rows."""
    rows, outputs = range(num_rows), range(NUM_OUTPUTS)
    lines = [
        f"define void @tile{num_rows}({PARAMETERS}) {{",
        "entry:",
        *_requests(),
        f"  %latest = sub i64 %last, {NUM_OUTPUTS}",
        "  br label %outputs_loop",
        "outputs_loop:",
        "  %wanted = phi i64 [ %first, %entry ], [ %following, %finish ]",
        # The last outputs of an odd number are computed twice rather than by code of their own.
        "  %is_last = icmp ugt i64 %wanted, %latest",
        "  %output = select i1 %is_last, i64 %latest, i64 %wanted",
        "  %weight_offset = mul i64 %output, %size",
        "  %w0 = getelementptr i8, ptr %values, i64 %weight_offset",
        *[f"  %w{o} = getelementptr i8, ptr %w{o - 1}, i64 %size" for o in outputs[1:]],
        "  %x0 = getelementptr i8, ptr %rows, i64 0",
        *[f"  %x{r} = getelementptr i8, ptr %x{r - 1}, i64 %size" for r in rows[1:]],
        "  br label %inputs0",
    ]
    num_together, _ = SHAPES[vectors]
    loops = [outputs[first : first + num_together] for first in range(0, NUM_OUTPUTS, num_together)]
    labels = ["outputs_loop", *(f"inputs{loop[0]}" for loop in loops), "finish"]
    for index, loop in enumerate(loops):
        lines += _add_inputs(loop, num_rows, (labels[index], labels[index + 2]), vectors)
    lines += [
        "finish:",
        *load("four_scales", "<4 x float>", "weight_scales", "float", "%output"),
        *load("biases", "<4 x float>", "bias", "float", "%output"),
    ]
    for r in rows:
        lines += _finished(r, vectors.lanes)
    return "\n".join([*lines, *end_of_outputs("%wanted", NUM_OUTPUTS)])


def _requests() -> list[str]:
    """Returns what computes `%distance0` and so on: bytes from the first output's weights to those that are requested.

    Groups of rows that compute the same outputs in turn request the weights of the next ones, each its share, so that
    memory is never idle.
    """
    lines = [
        f"  %bytes = mul i64 %size, {NUM_OUTPUTS}",
        f"  %least = add i64 %bytes, {AHEAD_BYTES - 1}",
        "  %num_ahead = udiv i64 %least, %bytes",
        "  %next_outputs = mul i64 %num_ahead, %bytes",
        "  %is_only = icmp eq i64 %num_shares, 1",
        f"  %distance = select i1 %is_only, i64 {AHEAD_BYTES}, i64 %next_outputs",
        f"  %first_request = mul i64 %share, {NUM_OUTPUTS}",
    ]
    for o in range(NUM_OUTPUTS):
        lines += [
            f"  %request{o} = add i64 %first_request, {o}",
            f"  %requested{o} = udiv i64 %request{o}, %num_shares",
            f"  %offset{o} = mul i64 %requested{o}, %size",
            f"  %distance{o} = add i64 %distance, %offset{o}",
        ]
    return lines


def _add_inputs(outputs: range, num_rows: int, around: tuple[str, str], vectors: CpuVectors) -> list[str]:
    """Returns the loop over the inputs of some outputs' weights, a line of memory at a time.

    The sums of products of each output and row are `%dot0_0` and so on.

    Args:
        around: Labels of what runs before the loop and after it.
    """
    before, following = around
    name, rows = f"inputs{outputs[0]}", range(num_rows)
    kind = f"<{vectors.lanes} x i32>"
    sums = {(o, r): f"%sum{o}_{r}" for o in outputs for r in rows}
    lines = [f"{name}:", f"  %{name}_at = phi i64 [ 0, %{before} ], [ %{name}_next, %{name} ]"]
    for (o, r), total in sums.items():
        lines.append(f"  {total} = phi {kind} [ zeroinitializer, %{before} ], [ %dot{o}_{r}, %{name} ]")
    lines.append(f"  %{name}_now = getelementptr i8, ptr %w0, i64 %{name}_at")
    for o in outputs:
        lines += [
            f"  %ahead{o} = getelementptr i8, ptr %{name}_now, i64 %distance{o}",
            f"  call void @llvm.prefetch.p0(ptr %ahead{o}, i32 0, i32 2, i32 1)",
        ]
    for first in range(0, LINE_BYTES, vectors.num_bytes):
        at = f"{name}_{first}"
        lines.append(f"  %{at} = add i64 %{name}_at, {first}")
        for o in outputs:
            lines += load(f"weights{o}_{first}", kind, f"w{o}", "i8", f"%{at}")
        for r in rows:
            lines += load(f"inputs{r}_{at}", kind, f"x{r}", "i8", f"%{at}")
            for o in outputs:
                more = f"dot{o}_{r}" if first + vectors.num_bytes == LINE_BYTES else f"sum{o}_{r}_{first}"
                lines += add_products(more, sums[o, r], f"%weights{o}_{first}", f"%inputs{r}_{at}", vectors)
                sums[o, r] = f"%{more}"
    return [
        *lines,
        f"  %{name}_next = add i64 %{name}_at, {LINE_BYTES}",
        f"  %{name}_more = icmp ult i64 %{name}_next, %size",
        f"  br i1 %{name}_more, label %{name}, label %{following}",
    ]


def _finished(row: int, lanes: int) -> list[str]:
    """Returns what turns the four vectors of sums of a row into its four outputs, and stores them."""
    r = row
    return [
        *add_lanes(f"total{r}_", [f"dot{o}_{r}" for o in range(NUM_OUTPUTS)], "i32", lanes),
        *load(f"row_scale{r}", "float", "row_scales", "float", str(r)),
        *load(f"excess{r}", "i32", "excesses", "i32", str(r)),
        *spread(f"excesses{r}", "i32", f"excess{r}", 4),
        *spread(f"row_scales{r}", "float", f"row_scale{r}", 4),
        f"  %exact{r} = add <4 x i32> %total{r}_4, %excesses{r}",
        f"  %float{r} = sitofp <4 x i32> %exact{r} to <4 x float>",
        f"  %once{r} = fmul <4 x float> %float{r}, %four_scales",
        f"  %twice{r} = fmul <4 x float> %once{r}, %row_scales{r}",
        f"  %biased{r} = fadd <4 x float> %twice{r}, %biases",
        f"  %line{r} = mul i64 %num_outputs, {r}",
        f"  %index{r} = add i64 %line{r}, %output",
        f"  %to{r} = getelementptr float, ptr %outputs, i64 %index{r}",
        f"  store <4 x float> %biased{r}, ptr %to{r}, align 4",
    ]
