"""Writes an attention kernel in LLVM IR: some rows attend, each alone, to stored keys and values.

A thread claims one row and one or two of its heads at a time. It computes their scores, turns them into weights, and
adds up the values: each sum in the order of the positions that the row sees, wherever they are stored. So the result
of a row does not depend on the other rows, nor on how many there are.
"""

from __future__ import annotations

from dataclasses import dataclass

from specgen.models.thread_code import ON_THREADS
from specgen.models.vector_code import FLOATS, LANES, SOFTMAX, load, load_arguments, spread

ARGUMENTS = {
    "queries": "ptr",
    "new_values": "ptr",
    "cos": "ptr",
    "sin": "ptr",
    "keys": "ptr",
    "values": "ptr",
    "outputs": "ptr",
    "scores": "ptr",
    "starts": "ptr",
    "num_before": "ptr",
    "others": "ptr",
    "num_seen": "ptr",
    "num_rows": "i64",
    "query_stride": "i64",
    "new_value_stride": "i64",
    "first_row": "i64",
    "head_stride": "i64",
    "num_others": "i64",
    "scores_stride": "i64",
    "scale": "float",
    "counter": "i64",
}
"""What `run` reads at the address that it is given: 64 bits each, in this order.

Addresses, float32: of the new rows, queries and keys side by side, and values; cosines and sines `[rows, rotary_size]`,
or 0 if nothing is rotated; keys and values of all heads; outputs `[rows, heads * head_size]`; scratch memory for scores
`[rows, heads, scores_stride]`. By row, int64: the first position that it sees, the number of positions from there on,
the positions of other rows that it sees `[rows, num_others]`, and the number of all positions that it sees. Then
numbers: of rows, of values from a row's queries to the next and from its new values to the next, the position where the
first row is stored, values from the keys of a head to the next, columns of `others`, values for the scores of a head;
the bits of the scale; and 0.
"""


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Heads of a model's attention.

    Args:
        num_heads: Of the queries.
        group: Heads that share keys and values.
        head_size: A multiple of `LANES`.
        rotary_size: Channels of a head that are rotated, a multiple of twice `LANES`; 0: the kernel rotates nothing.
    """

    num_heads: int
    group: int
    head_size: int
    rotary_size: int = 0

    @property
    def num_together(self) -> int:
        """Heads that are computed at once: their sums stay in the registers."""
        return 2 if self.group % 2 == 0 and self.head_size <= 8 * LANES else 1


def attention_code(shape: AttentionShape) -> str:
    """Returns the kernel in LLVM IR, without `store_code`, which it calls.

    Its function `run` takes what those of products take: the address of `ARGUMENTS`, one that it does not use, that of
    OpenMP's entry point, and the number of threads.
    """
    return "\n".join([SOFTMAX, _attend(shape), ON_THREADS, _RUN])


_RUN = """
define void @run(ptr %arguments, ptr %unused, ptr %parallel, i64 %num_threads) {
entry:
  call void @store(ptr %arguments)
  call void @on_threads(ptr @attend, ptr %arguments, ptr %parallel, i64 %num_threads)
  ret void
}
"""


def _attend(shape: AttentionShape) -> str:
    """Returns the function that runs on each thread: it claims heads of rows until none are left."""
    together = range(shape.num_together)
    vectors = range(shape.head_size // LANES)
    blocks = shape.num_heads // shape.num_together
    lines = [
        "define void @attend(ptr %arguments) {",
        "entry:",
        *load_arguments(ARGUMENTS, [name for name in ARGUMENTS if name != "counter"]),
        f"  %counter = getelementptr i64, ptr %arguments, i64 {list(ARGUMENTS).index('counter')}",
        f"  %num_tasks = mul i64 %num_rows, {blocks}",
        "  br label %claim",
        "claim:",
        "  %task = atomicrmw add ptr %counter, i64 1 monotonic",
        "  %is_any = icmp ult i64 %task, %num_tasks",
        "  br i1 %is_any, label %take, label %exit",
        "take:",
        f"  %row = udiv i64 %task, {blocks}",
        f"  %block = urem i64 %task, {blocks}",
        f"  %head = mul i64 %block, {shape.num_together}",
        f"  %kv_head = udiv i64 %head, {shape.group}",
        "  %head_offset = mul i64 %kv_head, %head_stride",
        "  %keys_here = getelementptr float, ptr %keys, i64 %head_offset",
        "  %values_here = getelementptr float, ptr %values, i64 %head_offset",
        *load("start", "i64", "starts", "i64", "%row"),
        *load("before", "i64", "num_before", "i64", "%row"),
        *load("seen", "i64", "num_seen", "i64", "%row"),
        "  %others_offset = mul i64 %row, %num_others",
        "  %others_here = getelementptr i64, ptr %others, i64 %others_offset",
        "  %query_row = mul i64 %row, %query_stride",
        f"  %query_head = mul i64 %head, {shape.head_size}",
        "  %query_offset = add i64 %query_row, %query_head",
        f"  %task_head = mul i64 %row, {shape.num_heads}",
        "  %score_head = add i64 %task_head, %head",
        "  %score_offset = mul i64 %score_head, %scores_stride",
        "  %scores0 = getelementptr float, ptr %scores, i64 %score_offset",
        f"  %output_offset = mul i64 %score_head, {shape.head_size}",
    ]
    if shape.num_together == 2:
        lines.append("  %scores1 = getelementptr float, ptr %scores0, i64 %scores_stride")
    lines.append("  %query = getelementptr float, ptr %queries, i64 %query_offset")
    for g in together:
        for v in vectors:
            lines += load(f"q{g}_{v}", FLOATS, "query", "float", str(g * shape.head_size + v * LANES))
    lines += ["  br label %score", *_score_loop(shape), "weigh:"]
    for g in together:
        lines += [
            f"  %sum{g} = call float @weights(ptr %scores{g}, i64 %seen)",
            f"  %share{g} = fdiv float 1.0, %sum{g}",
            *spread(f"shares{g}", "float", f"share{g}", LANES),
        ]
    lines += ["  br label %add", *_value_loop(shape), "store:"]
    lines.append("  %output = getelementptr float, ptr %outputs, i64 %output_offset")
    for g in together:
        for v in vectors:
            lines += [
                f"  %out{g}_{v} = fmul {FLOATS} %more{g}_{v}, %shares{g}",
                f"  %out_at{g}_{v} = getelementptr float, ptr %output, i64 {g * shape.head_size + v * LANES}",
                f"  store {FLOATS} %out{g}_{v}, ptr %out_at{g}_{v}, align 4",
            ]
    return "\n".join([*lines, "  br label %claim", "exit:", "  ret void", "}"])


def _position(name: str, index: str) -> list[str]:
    """Returns what finds the offset of the position that a row sees at an index: before the pass, or in another row."""
    return [
        f"  %is_before_{name} = icmp ult i64 {index}, %before",
        f"  %near_{name} = add i64 %start, {index}",
        f"  %beyond_{name} = sub i64 {index}, %before",
        f"  %other_{name} = select i1 %is_before_{name}, i64 0, i64 %beyond_{name}",
        *load(f"far_{name}", "i64", "others_here", "i64", f"%other_{name}"),
        f"  %position_{name} = select i1 %is_before_{name}, i64 %near_{name}, i64 %far_{name}",
    ]


def _score_loop(shape: AttentionShape) -> list[str]:
    """Returns the loop over the positions that a row sees: products of its queries with their keys."""
    lines = [
        "score:",
        "  %i = phi i64 [ 0, %take ], [ %i_next, %score ]",
        *_position("k", "%i"),
        f"  %key_offset = mul i64 %position_k, {shape.head_size}",
        "  %key = getelementptr float, ptr %keys_here, i64 %key_offset",
    ]
    vectors = range(shape.head_size // LANES)
    for v in vectors:
        lines += load(f"k{v}", FLOATS, "key", "float", str(v * LANES))
    for g in range(shape.num_together):
        lines.append(f"  %p{g}_0 = fmul {FLOATS} %q{g}_0, %k0")
        for v in vectors[1:]:
            operands = f"{FLOATS} %q{g}_{v}, {FLOATS} %k{v}, {FLOATS} %p{g}_{v - 1}"
            lines.append(f"  %p{g}_{v} = call {FLOATS} @llvm.fma.v{LANES}f32({operands})")
        lines += [
            f"  %dot{g} = call reassoc float "
            f"@llvm.vector.reduce.fadd.v{LANES}f32(float 0.0, {FLOATS} %p{g}_{len(vectors) - 1})",
            f"  %scaled{g} = fmul float %dot{g}, %scale",
            f"  %score_at{g} = getelementptr float, ptr %scores{g}, i64 %i",
            f"  store float %scaled{g}, ptr %score_at{g}, align 4",
        ]
    return [
        *lines,
        "  %i_next = add i64 %i, 1",
        "  %score_more = icmp ult i64 %i_next, %seen",
        "  br i1 %score_more, label %score, label %weigh",
    ]


def _value_loop(shape: AttentionShape) -> list[str]:
    """Returns the loop that adds up the values by their weights: `%more0_0` and so on."""
    together, vectors = range(shape.num_together), range(shape.head_size // LANES)
    lines = ["add:", "  %j = phi i64 [ 0, %weigh ], [ %j_next, %add ]"]
    for g in together:
        for v in vectors:
            lines.append(f"  %total{g}_{v} = phi {FLOATS} [ zeroinitializer, %weigh ], [ %more{g}_{v}, %add ]")
    lines += [
        *_position("v", "%j"),
        f"  %value_offset = mul i64 %position_v, {shape.head_size}",
        "  %value = getelementptr float, ptr %values_here, i64 %value_offset",
    ]
    for v in vectors:
        lines += load(f"v{v}", FLOATS, "value", "float", str(v * LANES))
    for g in together:
        lines += [
            *load(f"weight{g}", "float", f"scores{g}", "float", "%j"),
            *spread(f"weights{g}", "float", f"weight{g}", LANES),
        ]
        for v in vectors:
            operands = f"{FLOATS} %weights{g}, {FLOATS} %v{v}, {FLOATS} %total{g}_{v}"
            lines.append(f"  %more{g}_{v} = call {FLOATS} @llvm.fma.v{LANES}f32({operands})")
    return [
        *lines,
        "  %j_next = add i64 %j, 1",
        "  %add_more = icmp ult i64 %j_next, %seen",
        "  br i1 %add_more, label %add, label %store",
    ]
