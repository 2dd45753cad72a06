"""Writes an attention kernel in LLVM IR: some rows attend, each alone, to stored keys and values.

A thread claims some rows, and of each some heads that share keys and values. It computes their scores, turns them into
weights, and adds up the values: each sum in the order of the positions that the row sees, wherever they are stored. So
the result of a row does not depend on the other rows, nor on how many there are.

A chunk of the positions that are stored one after the other is computed for all rows before the next one, so that its
keys and values are in the nearest cache for all rows but the first. Then each row looks up where its other positions
are. Its sums are in the outputs meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specgen.models.attention_loops import PARAMETERS, TOGETHER, scores_code, values_code
from specgen.models.thread_code import ON_THREADS
from specgen.models.vector_code import SOFTMAX, load, load_arguments

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
    "rows_at_once": "i64",
    "chunk": "i64",
    "scale": "float",
    "counter": "i64",
}
"""What `run` reads at the address that it is given: 64 bits each, in this order.

Addresses, float32: of the new rows, queries and keys side by side, and values; cosines and sines `[rows, rotary_size]`,
or 0 if nothing is rotated; keys and values of all heads; outputs `[rows, heads * head_size]`; scratch memory for scores
`[rows, heads, scores_stride]`. By row, int64: the first position that it sees, the number of positions from there on,
the positions of other rows that it sees `[rows, num_others]`, and the number of all positions that it sees. Then
numbers: of rows, of values from a row's queries to the next and from its new values to the next, the position where the
first row is stored, values from the keys of a head to the next, columns of `others`, values for the scores of a head,
the last of which belongs to none; rows that a thread claims at once; positions of a chunk, a multiple of `TOGETHER`;
the bits of the scale; and 0. A row sees itself at least, as one of the other rows.
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
    return "\n".join([_MINIMUM, SOFTMAX, scores_code(shape), values_code(shape), _attend(shape), ON_THREADS, _RUN])


_MINIMUM = """
declare i64 @llvm.umin.i64(i64, i64)
declare i64 @llvm.umax.i64(i64, i64)
"""
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
    blocks = shape.num_heads // shape.num_together
    loads = "\n".join(load_arguments(ARGUMENTS, [name for name in ARGUMENTS if name != "counter"]))
    most_in_order = "\n".join(_in_order("most", "most_row"))
    return f"""
define void @attend(ptr %arguments) {{
entry:
{loads}
  %counter = getelementptr i64, ptr %arguments, i64 {list(ARGUMENTS).index("counter")}
  %rows_up = add i64 %num_rows, %rows_at_once
  %rows_up_less = sub i64 %rows_up, 1
  %num_groups = udiv i64 %rows_up_less, %rows_at_once
  %num_tasks = mul i64 %num_groups, {blocks}
  br label %claim
claim:
  %task = atomicrmw add ptr %counter, i64 1 monotonic
  %is_any = icmp ult i64 %task, %num_tasks
  br i1 %is_any, label %take, label %exit
take:
  %group = udiv i64 %task, {blocks}
  %block = urem i64 %task, {blocks}
  %first = mul i64 %group, %rows_at_once
  %end = add i64 %first, %rows_at_once
  %last = call i64 @llvm.umin.i64(i64 %end, i64 %num_rows)
  %head = mul i64 %block, {shape.num_together}
  %kv_head = udiv i64 %head, {shape.group}
  %head_offset = mul i64 %kv_head, %head_stride
  %keys_here = getelementptr float, ptr %keys, i64 %head_offset
  %values_here = getelementptr float, ptr %values, i64 %head_offset
  br label %most_loop
most_loop:
  %most_row = phi i64 [ %first, %take ], [ %most_row_next, %most_loop ]
  %most_so_far = phi i64 [ 0, %take ], [ %most, %most_loop ]
{most_in_order}
  %most = call i64 @llvm.umax.i64(i64 %most_so_far, i64 %most_in_order)
  %most_row_next = add i64 %most_row, 1
  %most_more = icmp ult i64 %most_row_next, %last
  br i1 %most_more, label %most_loop, label %score
{_over_chunks("score", shape, "near_scores", "weigh")}
{_over_rows("weigh", shape, ("far_scores", "weigh"), "add")}
{_over_chunks("add", shape, "near_values", "finish")}
{_over_rows("finish", shape, ("far_values",), "claim")}
exit:
  ret void
}}
"""


def _over_chunks(name: str, shape: AttentionShape, function: str, following: str) -> str:
    """Returns what calls a function of `attention_loops` for each chunk of positions and each row that sees some."""
    return f"""{name}:
  br label %{name}_chunks
{name}_chunks:
  %{name}_from = phi i64 [ 0, %{name} ], [ %{name}_chunk_end, %{name}_chunk_done ]
  %{name}_chunk_end = add i64 %{name}_from, %chunk
  %{name}_is_any = icmp ult i64 %{name}_from, %most
  br i1 %{name}_is_any, label %{name}_rows, label %{following}
{name}_rows:
  %{name}_row = phi i64 [ %first, %{name}_chunks ], [ %{name}_row_next, %{name}_row_done ]
{_places(name, shape)}
  %{name}_to = call i64 @llvm.umin.i64(i64 %{name}_chunk_end, i64 %{name}_in_order)
  %{name}_sees_any = icmp ult i64 %{name}_from, %{name}_to
  br i1 %{name}_sees_any, label %{name}_call, label %{name}_row_done
{name}_call:
{_call(name, function)}
  br label %{name}_row_done
{name}_row_done:
  %{name}_row_next = add i64 %{name}_row, 1
  %{name}_row_more = icmp ult i64 %{name}_row_next, %last
  br i1 %{name}_row_more, label %{name}_rows, label %{name}_chunk_done
{name}_chunk_done:
  br label %{name}_chunks"""


def _over_rows(name: str, shape: AttentionShape, functions: Sequence[str], following: str) -> str:
    """Returns what calls functions of `attention_loops` for each row."""
    calls = "\n".join(_call(name, function) for function in functions)
    return f"""{name}:
  br label %{name}_rows
{name}_rows:
  %{name}_row = phi i64 [ %first, %{name} ], [ %{name}_row_next, %{name}_rows ]
{_places(name, shape)}
{calls}
  %{name}_row_next = add i64 %{name}_row, 1
  %{name}_row_more = icmp ult i64 %{name}_row_next, %last
  br i1 %{name}_row_more, label %{name}_rows, label %{following}"""


def _call(name: str, function: str) -> str:
    """Returns a call of a function of `attention_loops` with the values of a row, whose names start with `name`."""
    shared = ("keys_here", "values_here", "scores_stride", "scale")
    given = [f"{kind} %{key if key in shared else f'{name}_{key}'}" for key, kind in PARAMETERS[function].items()]
    return f"  call void @{function}({', '.join(given)})"


def _in_order(name: str, row: str) -> list[str]:
    """Returns what finds how many positions of a row are computed in chunks: whole groups of those before the pass."""
    return [
        *load(f"{name}_before", "i64", "num_before", "i64", f"%{row}"),
        f"  %{name}_in_order = and i64 %{name}_before, {-TOGETHER}",
    ]


def _places(name: str, shape: AttentionShape) -> str:
    """Returns what finds the values of a row that functions of `attention_loops` get."""
    row = f"%{name}_row"
    lines = [
        *load(f"{name}_start", "i64", "starts", "i64", row),
        *_in_order(name, f"{name}_row"),
        *load(f"{name}_seen", "i64", "num_seen", "i64", row),
        f"  %{name}_others_offset = mul i64 {row}, %num_others",
        f"  %{name}_others = getelementptr i64, ptr %others, i64 %{name}_others_offset",
        f"  %{name}_query_row = mul i64 {row}, %query_stride",
        f"  %{name}_query_head = mul i64 %head, {shape.head_size}",
        f"  %{name}_query_offset = add i64 %{name}_query_row, %{name}_query_head",
        f"  %{name}_query = getelementptr float, ptr %queries, i64 %{name}_query_offset",
        f"  %{name}_heads_before = mul i64 {row}, {shape.num_heads}",
        f"  %{name}_row_head = add i64 %{name}_heads_before, %head",
        f"  %{name}_scores_offset = mul i64 %{name}_row_head, %scores_stride",
        f"  %{name}_scores0 = getelementptr float, ptr %scores, i64 %{name}_scores_offset",
        f"  %{name}_output_offset = mul i64 %{name}_row_head, {shape.head_size}",
        f"  %{name}_output = getelementptr float, ptr %outputs, i64 %{name}_output_offset",
    ]
    return "\n".join(lines)
