"""Writes an attention kernel in LLVM IR: some rows attend, each alone, to stored keys and values.

A thread claims one row and some of its heads at a time, which share keys and values. It computes their scores, turns
them into weights, and adds up the values: each sum in the order of the positions that the row sees, wherever they are
stored. So the result of a row does not depend on the other rows, nor on how many there are.

Scores and values are computed for `TOGETHER` positions at once. A first loop takes those that are stored one after the
other, and a second one looks up where each of the others is; both compute the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from specgen.models.attention_loops import TOGETHER, score_loops, value_loops
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
        num_together: Heads that are computed at once, a divisor of `group`. It does not change their results.
    """

    num_heads: int
    group: int
    head_size: int
    rotary_size: int = 0
    num_together: int = 1


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
        *spread("scales", "float", "scale", TOGETHER),
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
        "  %last_seen = sub i64 %seen, 1",
        f"  %in_order = and i64 %before, {-TOGETHER}",
        "  %is_near = icmp ne i64 %in_order, 0",
        "  %is_far = icmp ult i64 %in_order, %seen",
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
    lines += [f"  %scores{g} = getelementptr float, ptr %scores{g - 1}, i64 %scores_stride" for g in together[1:]]
    lines.append("  %query = getelementptr float, ptr %queries, i64 %query_offset")
    for g in together:
        for v in vectors:
            lines += load(f"q{g}_{v}", FLOATS, "query", "float", str(g * shape.head_size + v * LANES))
    lines += [*score_loops(shape, "take", "weigh"), "weigh:"]
    for g in together:
        lines += [
            f"  %sum{g} = call float @weights(ptr %scores{g}, i64 %seen)",
            f"  %share{g} = fdiv float 1.0, %sum{g}",
            *spread(f"shares{g}", "float", f"share{g}", LANES),
        ]
    lines += [*value_loops(shape, "weigh", "store"), "store:"]
    lines.append("  %output = getelementptr float, ptr %outputs, i64 %output_offset")
    for g in together:
        for v in vectors:
            lines += [
                f"  %out{g}_{v} = fmul {FLOATS} %total{g}_{v}, %shares{g}",
                f"  %out_at{g}_{v} = getelementptr float, ptr %output, i64 {g * shape.head_size + v * LANES}",
                f"  store {FLOATS} %out{g}_{v}, ptr %out_at{g}_{v}, align 4",
            ]
    return "\n".join([*lines, "  br label %claim", "exit:", "  ret void", "}"])
