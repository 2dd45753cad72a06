"""The int8 kernels in LLVM's language.

`quantize` rounds rows to int8. `multiply` runs on each thread and claims outputs; `tile1` to `tile8` compute outputs
of so many rows, and read each weight once.
"""

from __future__ import annotations

NUM_OUTPUTS = {1: 4, 2: 4, 3: 4, 4: 4, 5: 4, 6: 4, 7: 2, 8: 2}
"""Outputs that are computed at once, by number of rows: as many as the 32 vector registers hold sums of."""
MANY_ROWS = 6
"""Above eight rows, they are computed in groups of this size: 24 sums for 10 reads."""
AHEAD_BYTES = 8192
"""How far ahead of its use a weight is requested from memory, into the second cache. The CPU itself does not look
beyond 4 KiB. Measured with 512 to 65,536: 8,192 is the fastest, and 15 to 35 % faster than nothing for eight rows."""
CHUNK_OUTPUTS = 32
"""Outputs that a thread claims at once."""


def kernel_text(width: int) -> str:
    """Returns the kernels in LLVM's language, for vectors of `width` bytes."""
    lanes = width // 4
    vector = f"<{lanes} x i32>"
    declarations = [
        f"declare {vector} @llvm.x86.avx512.vpdpbusd.{width * 8}({vector}, {vector}, {vector})",
        *sorted({f"declare i32 @llvm.vector.reduce.add.v{n}i32(<{n} x i32>)" for n in (lanes, 16)}),
        "declare float @llvm.vector.reduce.fmaximum.v16f32(<16 x float>)",
        "declare <16 x float> @llvm.maximum.v16f32(<16 x float>, <16 x float>)",
        "declare <16 x float> @llvm.fabs.v16f32(<16 x float>)",
        "declare <16 x float> @llvm.rint.v16f32(<16 x float>)",
        "declare <16 x i32> @llvm.fptosi.sat.v16i32.v16f32(<16 x float>)",
        "declare float @llvm.maximum.f32(float, float)",
        "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)",
    ]
    tiles = [_tile(num_rows, NUM_OUTPUTS[num_rows], width) for num_rows in NUM_OUTPUTS]
    return "\n".join([*declarations, QUANTIZE, *tiles, _multiply()])


QUANTIZE = """
define void @quantize(ptr %rows, ptr %values, ptr %scales, ptr %sums, i64 %num_rows, i64 %size, i64 %flip) {
entry:
  %flip_byte = trunc i64 %flip to i8
  %flip_first = insertelement <16 x i8> poison, i8 %flip_byte, i32 0
  %flips = shufflevector <16 x i8> %flip_first, <16 x i8> poison, <16 x i32> zeroinitializer
  br label %row
row:
  %r = phi i64 [ 0, %entry ], [ %r_next, %store ]
  %offset = mul i64 %r, %size
  %in = getelementptr float, ptr %rows, i64 %offset
  %out = getelementptr i8, ptr %values, i64 %offset
  br label %find
find:
  %i = phi i64 [ 0, %row ], [ %i_next, %find ]
  %largest = phi <16 x float> [ zeroinitializer, %row ], [ %larger, %find ]
  %at = getelementptr float, ptr %in, i64 %i
  %x = load <16 x float>, ptr %at, align 4
  %size_of = call <16 x float> @llvm.fabs.v16f32(<16 x float> %x)
  %larger = call <16 x float> @llvm.maximum.v16f32(<16 x float> %largest, <16 x float> %size_of)
  %i_next = add i64 %i, 16
  %find_more = icmp ult i64 %i_next, %size
  br i1 %find_more, label %find, label %found
found:
  %max = call float @llvm.vector.reduce.fmaximum.v16f32(<16 x float> %larger)
  %positive = call float @llvm.maximum.f32(float %max, float 0x3810000000000000)
  %scale = fdiv float %positive, 1.270000e+02
  %factor = fdiv float 1.270000e+02, %positive
  %factor_first = insertelement <16 x float> poison, float %factor, i32 0
  %factors = shufflevector <16 x float> %factor_first, <16 x float> poison, <16 x i32> zeroinitializer
  br label %round
round:
  %j = phi i64 [ 0, %found ], [ %j_next, %round ]
  %sum = phi <16 x i32> [ zeroinitializer, %found ], [ %sum_next, %round ]
  %from = getelementptr float, ptr %in, i64 %j
  %y = load <16 x float>, ptr %from, align 4
  %scaled = fmul <16 x float> %y, %factors
  %rounded = call <16 x float> @llvm.rint.v16f32(<16 x float> %scaled)
  %integers = call <16 x i32> @llvm.fptosi.sat.v16i32.v16f32(<16 x float> %rounded)
  %sum_next = add <16 x i32> %sum, %integers
  %bytes = trunc <16 x i32> %integers to <16 x i8>
  %flipped = xor <16 x i8> %bytes, %flips
  %to = getelementptr i8, ptr %out, i64 %j
  store <16 x i8> %flipped, ptr %to, align 1
  %j_next = add i64 %j, 16
  %round_more = icmp ult i64 %j_next, %size
  br i1 %round_more, label %round, label %store
store:
  %total = call i32 @llvm.vector.reduce.add.v16i32(<16 x i32> %sum_next)
  %total_at = getelementptr i32, ptr %sums, i64 %r
  store i32 %total, ptr %total_at
  %scale_at = getelementptr float, ptr %scales, i64 %r
  store float %scale, ptr %scale_at
  %r_next = add i64 %r, 1
  %row_more = icmp ult i64 %r_next, %num_rows
  br i1 %row_more, label %row, label %exit
exit:
  ret void
}
"""

_PARAMETERS = (
    "ptr %values, ptr %weight_scales, ptr %bias, ptr %rows, ptr %row_scales, ptr %row_sums, ptr %outputs, "
    "i64 %num_outputs, i64 %size"
)


def _tile(num_rows: int, num_outputs: int, width: int) -> str:
    """Returns a function that computes outputs `%first` to `%last` of so many rows."""
    lanes = width // 4
    vector = f"<{lanes} x i32>"
    pairs = [(o, r) for o in range(num_outputs) for r in range(num_rows)]
    lines = [
        f"define void @tile{num_rows}({_PARAMETERS}, i64 %first, i64 %last) {{",
        "entry:",
        f"  %latest = sub i64 %last, {num_outputs}",
        "  br label %outputs_loop",
        "outputs_loop:",
        "  %wanted = phi i64 [ %first, %entry ], [ %following, %finish ]",
        # The last outputs of an odd number are computed twice rather than by code of their own.
        "  %is_last = icmp ugt i64 %wanted, %latest",
        "  %o0 = select i1 %is_last, i64 %latest, i64 %wanted",
        "  %weight_offset = mul i64 %o0, %size",
        "  %w0 = getelementptr i8, ptr %values, i64 %weight_offset",
        *[f"  %w{o} = getelementptr i8, ptr %w{o - 1}, i64 %size" for o in range(1, num_outputs)],
        *[f"  %o{o} = add i64 %o0, {o}" for o in range(1, num_outputs)],
        "  %x0 = getelementptr i8, ptr %rows, i64 0",
        *[f"  %x{r} = getelementptr i8, ptr %x{r - 1}, i64 %size" for r in range(1, num_rows)],
        "  br label %inputs_loop",
        "inputs_loop:",
        "  %i = phi i64 [ 0, %outputs_loop ], [ %i_next, %inputs_loop ]",
        *[
            f"  %a{o}_{r} = phi {vector} [ zeroinitializer, %outputs_loop ], [ %b{o}_{r}, %inputs_loop ]"
            for o, r in pairs
        ],
    ]
    for r in range(num_rows):
        lines += [f"  %xp{r} = getelementptr i8, ptr %x{r}, i64 %i", f"  %xv{r} = load {vector}, ptr %xp{r}, align 1"]
    for o in range(num_outputs):
        lines += [
            f"  %wp{o} = getelementptr i8, ptr %w{o}, i64 %i",
            f"  %wv{o} = load {vector}, ptr %wp{o}, align 1",
            f"  %ahead{o} = getelementptr i8, ptr %wp{o}, i64 {AHEAD_BYTES}",
            f"  call void @llvm.prefetch.p0(ptr %ahead{o}, i32 0, i32 2, i32 1)",
        ]
        for r in range(num_rows):
            operands = f"{vector} %a{o}_{r}, {vector} %wv{o}, {vector} %xv{r}"
            lines.append(f"  %b{o}_{r} = call {vector} @llvm.x86.avx512.vpdpbusd.{width * 8}({operands})")
    lines += [
        f"  %i_next = add i64 %i, {width}",
        "  %inputs_more = icmp ult i64 %i_next, %size",
        "  br i1 %inputs_more, label %inputs_loop, label %finish",
        "finish:",
    ]
    for o in range(num_outputs):
        lines += [
            *_load(f"weight_scale{o}", "float", "weight_scales", f"%o{o}"),
            *_load(f"bias{o}", "float", "bias", f"%o{o}"),
        ]
    for r in range(num_rows):
        lines += [
            *_load(f"row_scale{r}", "float", "row_scales", str(r)),
            *_load(f"row_sum{r}", "i32", "row_sums", str(r)),
        ]
        lines += [f"  %excess{r} = shl i32 %row_sum{r}, 7", f"  %line{r} = mul i64 %num_outputs, {r}"]
    for o, r in pairs:
        at = f"{o}_{r}"
        lines += [
            f"  %sum{at} = call i32 @llvm.vector.reduce.add.v{lanes}i32({vector} %b{at})",
            f"  %exact{at} = sub i32 %sum{at}, %excess{r}",
            f"  %float{at} = sitofp i32 %exact{at} to float",
            f"  %once{at} = fmul float %float{at}, %weight_scale{o}",
            f"  %twice{at} = fmul float %once{at}, %row_scale{r}",
            f"  %output{at} = fadd float %twice{at}, %bias{o}",
            f"  %index{at} = add i64 %line{r}, %o{o}",
            f"  %output_at{at} = getelementptr float, ptr %outputs, i64 %index{at}",
            f"  store float %output{at}, ptr %output_at{at}",
        ]
    return "\n".join(
        [
            *lines,
            f"  %following = add i64 %wanted, {num_outputs}",
            "  %outputs_more = icmp ult i64 %following, %last",
            "  br i1 %outputs_more, label %outputs_loop, label %exit",
            "exit:",
            "  ret void",
            "}",
        ]
    )


def _load(name: str, kind: str, array: str, index: str) -> list[str]:
    return [
        f"  %{name}_at = getelementptr {kind}, ptr %{array}, i64 {index}",
        f"  %{name} = load {kind}, ptr %{name}_at",
    ]


def _multiply() -> str:
    """Returns the function that runs on each thread: it claims outputs until none are left."""
    names = ["values", "weight_scales", "bias", "rows", "row_scales", "row_sums", "outputs"]
    lines = ["define void @multiply(ptr %arguments) {", "entry:"]
    for index, name in enumerate(names):
        lines += _load(name, "ptr", "arguments", str(index))
    for index, name in enumerate(["num_outputs", "size", "num_rows"], len(names)):
        lines += _load(name, "i64", "arguments", str(index))
    fixed = "ptr %values, ptr %weight_scales, ptr %bias"
    moved = "ptr %rows_here, ptr %row_scales_here, ptr %row_sums_here, ptr %outputs_here"
    cases = "\n".join(f"    i64 {number}, label %call{number}" for number in NUM_OUTPUTS)
    calls = "\n".join(
        f"call{number}:\n"
        f"  call void @tile{number}({fixed}, {moved}, i64 %num_outputs, i64 %size, i64 %first, i64 %last)\n"
        f"  br label %next"
        for number in NUM_OUTPUTS
    )
    return (
        "\n".join(lines)
        + f"""
  %counter = getelementptr i64, ptr %arguments, i64 {len(names) + 3}
  %are_few = icmp ule i64 %num_rows, {max(NUM_OUTPUTS)}
  %group = select i1 %are_few, i64 %num_rows, i64 {MANY_ROWS}
  br label %claim
claim:
  %first = atomicrmw add ptr %counter, i64 {CHUNK_OUTPUTS} monotonic
  %is_any = icmp ult i64 %first, %num_outputs
  br i1 %is_any, label %take, label %exit
take:
  %end = add i64 %first, {CHUNK_OUTPUTS}
  %is_end = icmp ult i64 %end, %num_outputs
  %last = select i1 %is_end, i64 %end, i64 %num_outputs
  br label %rows_loop
rows_loop:
  %row = phi i64 [ 0, %take ], [ %row_next, %next ]
  %left = sub i64 %num_rows, %row
  %is_part = icmp ult i64 %left, %group
  %count = select i1 %is_part, i64 %left, i64 %group
  %rows_offset = mul i64 %row, %size
  %rows_here = getelementptr i8, ptr %rows, i64 %rows_offset
  %row_scales_here = getelementptr float, ptr %row_scales, i64 %row
  %row_sums_here = getelementptr i32, ptr %row_sums, i64 %row
  %outputs_offset = mul i64 %row, %num_outputs
  %outputs_here = getelementptr float, ptr %outputs, i64 %outputs_offset
  switch i64 %count, label %exit [
{cases}
  ]
{calls}
next:
  %row_next = add i64 %row, %count
  %is_more = icmp ult i64 %row_next, %num_rows
  br i1 %is_more, label %rows_loop, label %claim
exit:
  ret void
}}
"""
    )
