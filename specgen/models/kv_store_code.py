"""Writes what rotates queries and keys of new rows, stores keys and values, and moves them, in LLVM IR."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from specgen.models.vector_code import FLOATS, LANES, load, load_arguments

if TYPE_CHECKING:
    from specgen.models.attention_code import AttentionShape


def store_code(shape: AttentionShape, arguments: Mapping[str, str]) -> str:
    """Returns the functions `store` and `move`.

    Args:
        arguments: The attention kernel's `ARGUMENTS`; `store` gets their address.
    """
    return _rotate(shape) + _store(shape, arguments) + _move(shape)


def _rotate(shape: AttentionShape) -> str:
    """Returns a function that moves a head, and rotates it if there is an address of cosines.

    It computes what `specgen.models.rotary.rotate` computes. The head may stay where it is.
    """
    half = shape.rotary_size // 2
    lines = [
        "define internal void @rotate(ptr %from, ptr %to, ptr %cos, ptr %sin) alwaysinline {",
        "entry:",
        *[line for at in range(0, shape.head_size, LANES) for line in load(f"x{at}", FLOATS, "from", "float", str(at))],
        "  %is_plain = icmp eq ptr %cos, null",
        "  br i1 %is_plain, label %plain, label %rotated",
        "plain:",
        *_stores("p", {at: f"%x{at}" for at in range(0, shape.head_size, LANES)}),
        "rotated:",
    ]
    results = {at: f"%x{at}" for at in range(shape.rotary_size, shape.head_size, LANES)}
    for at in range(0, shape.rotary_size, LANES):
        lines += [
            *load(f"cos{at}", FLOATS, "cos", "float", str(at)),
            *load(f"sin{at}", FLOATS, "sin", "float", str(at)),
            f"  %kept{at} = fmul {FLOATS} %x{at}, %cos{at}",
            f"  %turned{at} = fmul {FLOATS} %x{(at + half) % shape.rotary_size}, %sin{at}",
            f"  %y{at} = fadd {FLOATS} %kept{at}, %turned{at}",
        ]
        results[at] = f"%y{at}"
    return "\n".join([*lines, *_stores("r", results), "}"])


def _stores(name: str, results: dict[int, str]) -> list[str]:
    """Returns what stores vectors of a head by their first channel, and returns from the function."""
    lines = []
    for at, value in results.items():
        lines += [
            f"  %{name}_to{at} = getelementptr float, ptr %to, i64 {at}",
            f"  store {FLOATS} {value}, ptr %{name}_to{at}, align 4",
        ]
    return [*lines, "  ret void"]


def _store(shape: AttentionShape, arguments: Mapping[str, str]) -> str:
    """Returns the function that rotates the new queries and keys, and stores the keys and values."""
    size, num_kv_heads = shape.head_size, shape.num_heads // shape.group
    names = ("queries", "new_values", "cos", "sin", "keys", "values")
    numbers = ("num_rows", "query_stride", "new_value_stride", "first_row", "head_stride")
    loads = "\n".join(load_arguments(arguments, (*names, *numbers)))
    return f"""
define internal void @store(ptr %arguments) {{
entry:
{loads}
  %is_plain = icmp eq ptr %cos, null
  br label %rows_loop
rows_loop:
  %row = phi i64 [ 0, %entry ], [ %row_next, %row_end ]
  %query_offset = mul i64 %row, %query_stride
  %queries_here = getelementptr float, ptr %queries, i64 %query_offset
  %keys_new = getelementptr float, ptr %queries_here, i64 {shape.num_heads * size}
  %value_offset = mul i64 %row, %new_value_stride
  %values_new = getelementptr float, ptr %new_values, i64 %value_offset
  %table_offset = mul i64 %row, {shape.rotary_size}
  %cos_row = getelementptr float, ptr %cos, i64 %table_offset
  %cos_here = select i1 %is_plain, ptr null, ptr %cos_row
  %sin_here = getelementptr float, ptr %sin, i64 %table_offset
  %position = add i64 %first_row, %row
  %position_offset = mul i64 %position, {size}
  %keys_here = getelementptr float, ptr %keys, i64 %position_offset
  %values_here = getelementptr float, ptr %values, i64 %position_offset
  br label %queries_loop
queries_loop:
  %head = phi i64 [ 0, %rows_loop ], [ %head_next, %queries_loop ]
  %head_offset = mul i64 %head, {size}
  %query = getelementptr float, ptr %queries_here, i64 %head_offset
  call void @rotate(ptr %query, ptr %query, ptr %cos_here, ptr %sin_here)
  %head_next = add i64 %head, 1
  %head_more = icmp ult i64 %head_next, {shape.num_heads}
  br i1 %head_more, label %queries_loop, label %keys_loop
keys_loop:
  %kv_head = phi i64 [ 0, %queries_loop ], [ %kv_head_next, %keys_loop ]
  %new_offset = mul i64 %kv_head, {size}
  %stored_offset = mul i64 %kv_head, %head_stride
  %key_new = getelementptr float, ptr %keys_new, i64 %new_offset
  %key = getelementptr float, ptr %keys_here, i64 %stored_offset
  call void @rotate(ptr %key_new, ptr %key, ptr %cos_here, ptr %sin_here)
  %value_new = getelementptr float, ptr %values_new, i64 %new_offset
  %value = getelementptr float, ptr %values_here, i64 %stored_offset
  call void @rotate(ptr %value_new, ptr %value, ptr null, ptr null)
  %kv_head_next = add i64 %kv_head, 1
  %kv_head_more = icmp ult i64 %kv_head_next, {num_kv_heads}
  br i1 %kv_head_more, label %keys_loop, label %row_end
row_end:
  %row_next = add i64 %row, 1
  %row_more = icmp ult i64 %row_next, %num_rows
  br i1 %row_more, label %rows_loop, label %exit
exit:
  ret void
}}
"""


def _move(shape: AttentionShape) -> str:
    """Returns the function that moves positions of stored keys and values to the front, in order.

    Its arguments are the addresses of all keys and values, their number, the values from a head to the next, the
    addresses of `%count` positions, int64, and the position where the first of them goes. None of them is in front of
    its new place.
    """
    return f"""
define void @move(ptr %tensors, i64 %num_tensors, i64 %head_stride, ptr %positions, i64 %first, i64 %count) {{
entry:
  br label %tensors_loop
tensors_loop:
  %index = phi i64 [ 0, %entry ], [ %index_next, %tensor_end ]
  %tensor_at = getelementptr i64, ptr %tensors, i64 %index
  %tensor = load ptr, ptr %tensor_at
  br label %heads_loop
heads_loop:
  %head = phi i64 [ 0, %tensors_loop ], [ %head_next, %head_end ]
  %head_offset = mul i64 %head, %head_stride
  %head_here = getelementptr float, ptr %tensor, i64 %head_offset
  br label %positions_loop
positions_loop:
  %i = phi i64 [ 0, %heads_loop ], [ %i_next, %positions_loop ]
  %position_at = getelementptr i64, ptr %positions, i64 %i
  %position = load i64, ptr %position_at
  %from_offset = mul i64 %position, {shape.head_size}
  %from = getelementptr float, ptr %head_here, i64 %from_offset
  %place = add i64 %first, %i
  %to_offset = mul i64 %place, {shape.head_size}
  %to = getelementptr float, ptr %head_here, i64 %to_offset
  call void @rotate(ptr %from, ptr %to, ptr null, ptr null)
  %i_next = add i64 %i, 1
  %i_more = icmp ult i64 %i_next, %count
  br i1 %i_more, label %positions_loop, label %head_end
head_end:
  %head_next = add i64 %head, 1
  %head_more = icmp ult i64 %head_next, {shape.num_heads // shape.group}
  br i1 %head_more, label %heads_loop, label %tensor_end
tensor_end:
  %index_next = add i64 %index, 1
  %index_more = icmp ult i64 %index_next, %num_tensors
  br i1 %index_more, label %tensors_loop, label %exit
exit:
  ret void
}}
"""
