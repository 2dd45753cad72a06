"""Writes the loops of the int8 kernel in LLVM IR: some outputs of some rows, whose sums stay in the registers."""

from __future__ import annotations

from specgen.models.vector_code import PARAMETERS, Tiles, end_of_outputs, load, spread

NUM_OUTPUTS = 4
"""Outputs that are computed at once."""
MAX_ROWS = {64: 6, 32: 3}
"""Rows that are computed at once, by bytes of a vector: the registers hold the sums of all pairs, 32 of 64 bytes or 16
of 32 bytes. More rows are computed in groups of about the same size."""
MAX_PARTS = 3
"""Groups of rows that compute the same outputs in turn: enough for 17 rows. Long prompts would take up to
12 % longer in turn, measured with 576 channels."""
AHEAD_BYTES = 8192
"""How far ahead of its use a weight is requested from memory, into the second cache. The CPU's own prefetching
ends at 4 KiB. Measured with 512 to 65,536: 8,192 is the fastest, and 15 to 35 % faster than nothing for eight rows."""


def int8_tiles(width: int) -> Tiles:
    """Returns the tiles for vectors of `width` bytes."""
    text = "\n".join(tile(num_rows, width) for num_rows in range(1, MAX_ROWS[width] + 1))
    return Tiles(text, MAX_ROWS[width], NUM_OUTPUTS, MAX_PARTS)


def tile(num_rows: int, width: int) -> str:
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
        "  br label %inputs_loop",
        "inputs_loop:",
        *_add_products(num_rows, width),
        "finish:",
        *load("four_scales", "<4 x float>", "weight_scales", "float", "%output"),
        *load("biases", "<4 x float>", "bias", "float", "%output"),
    ]
    for r in rows:
        lines += _finished(r, width)
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


def _add_products(num_rows: int, width: int) -> list[str]:
    """Returns the loop over a weight's inputs: the sums of products of each output and row are `%b0_0` and so on."""
    vector = f"<{width // 4} x i32>"
    rows, outputs = range(num_rows), range(NUM_OUTPUTS)
    lines = ["  %i = phi i64 [ 0, %outputs_loop ], [ %i_next, %inputs_loop ]"]
    for o in outputs:
        for r in rows:
            lines.append(f"  %a{o}_{r} = phi {vector} [ zeroinitializer, %outputs_loop ], [ %b{o}_{r}, %inputs_loop ]")
    for r in rows:
        lines += [f"  %xp{r} = getelementptr i8, ptr %x{r}, i64 %i", f"  %xv{r} = load {vector}, ptr %xp{r}, align 1"]
    for o in outputs:
        lines += [
            f"  %wp{o} = getelementptr i8, ptr %w{o}, i64 %i",
            f"  %wv{o} = load {vector}, ptr %wp{o}, align 1",
            f"  %ahead{o} = getelementptr i8, ptr %wp0, i64 %distance{o}",
            f"  call void @llvm.prefetch.p0(ptr %ahead{o}, i32 0, i32 2, i32 1)",
        ]
        for r in rows:
            operands = f"{vector} %a{o}_{r}, {vector} %wv{o}, {vector} %xv{r}"
            lines.append(f"  %b{o}_{r} = call {vector} @llvm.x86.avx512.vpdpbusd.{width * 8}({operands})")
    return [
        *lines,
        f"  %i_next = add i64 %i, {width}",
        "  %inputs_more = icmp ult i64 %i_next, %size",
        "  br i1 %inputs_more, label %inputs_loop, label %finish",
    ]


def _finished(row: int, width: int) -> list[str]:
    """Returns what turns the four vectors of sums of a row into its four outputs, and stores them.

    The four are added up together, as in the transposition of a matrix: one after the other takes three times as many
    instructions, which was a third of the time of four rows.
    """
    lanes, r = width // 4, row
    groups = range(0, lanes, 4)

    def shuffled(name: str, first: str, second: str, picked: list[tuple[int, int]]) -> str:
        """Picks lanes of two vectors, in each group of four: (vector, lane)."""
        mask = ", ".join(f"i32 {vector * lanes + group + lane}" for group in groups for vector, lane in picked)
        vectors = f"<{lanes} x i32> %{first}, <{lanes} x i32> %{second}"
        return f"  %{name} = shufflevector {vectors}, <{lanes} x i32> <{mask}>"

    lines = []
    for name, first, second in ((f"ab{r}", f"b0_{r}", f"b1_{r}"), (f"cd{r}", f"b2_{r}", f"b3_{r}")):
        lines += [
            shuffled(f"{name}_low", first, second, [(0, 0), (1, 0), (0, 1), (1, 1)]),
            shuffled(f"{name}_high", first, second, [(0, 2), (1, 2), (0, 3), (1, 3)]),
            f"  %{name} = add <{lanes} x i32> %{name}_low, %{name}_high",
        ]
    lines += [
        shuffled(f"low{r}", f"ab{r}", f"cd{r}", [(0, 0), (0, 1), (1, 0), (1, 1)]),
        shuffled(f"high{r}", f"ab{r}", f"cd{r}", [(0, 2), (0, 3), (1, 2), (1, 3)]),
        f"  %sum{r}_{lanes} = add <{lanes} x i32> %low{r}, %high{r}",
    ]
    while lanes > 4:
        whole, lanes = lanes, lanes // 2
        for half, start in (("left", 0), ("right", lanes)):
            mask = ", ".join(f"i32 {lane}" for lane in range(start, start + lanes))
            kind = f"<{whole} x i32>"
            lines.append(
                f"  %{half}{r}_{lanes} = shufflevector {kind} %sum{r}_{whole}, {kind} poison, <{lanes} x i32> <{mask}>"
            )
        lines.append(f"  %sum{r}_{lanes} = add <{lanes} x i32> %left{r}_{lanes}, %right{r}_{lanes}")
    return [
        *lines,
        *load(f"row_scale{r}", "float", "row_scales", "float", str(r)),
        *load(f"excess{r}", "i32", "excesses", "i32", str(r)),
        *spread(f"excesses{r}", "i32", f"excess{r}", 4),
        *spread(f"row_scales{r}", "float", f"row_scale{r}", 4),
        f"  %exact{r} = add <4 x i32> %sum{r}_4, %excesses{r}",
        f"  %float{r} = sitofp <4 x i32> %exact{r} to <4 x float>",
        f"  %once{r} = fmul <4 x float> %float{r}, %four_scales",
        f"  %twice{r} = fmul <4 x float> %once{r}, %row_scales{r}",
        f"  %biased{r} = fadd <4 x float> %twice{r}, %biases",
        f"  %line{r} = mul i64 %num_outputs, {r}",
        f"  %index{r} = add i64 %line{r}, %output",
        f"  %to{r} = getelementptr float, ptr %outputs, i64 %index{r}",
        f"  store <4 x float> %biased{r}, ptr %to{r}, align 4",
    ]
