"""Writes the loops of the attention kernel in LLVM IR: over the positions that a row sees, some at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from specgen.models.sums_code import add_lanes
from specgen.models.vector_code import FLOATS, LANES, load, spread

if TYPE_CHECKING:
    from specgen.models.attention_code import AttentionShape

TOGETHER = 4
"""Positions that are computed at once: the lanes of so many vectors are added up together."""


def score_loops(shape: AttentionShape, before: str, following: str) -> list[str]:
    """Returns the loops that store the scores of all positions: products of the queries with their keys.

    `%is_near` says whether the first loop has positions, `%is_far` whether the second one has.

    Args:
        shape: The heads.
        before: Label of what runs before the loops.
        following: Label of what runs after them.
    """
    return [
        "  br i1 %is_near, label %near_score, label %far_score",
        "near_score:",
        f"  %near_i = phi i64 [ 0, %{before} ], [ %near_i_next, %near_score ]",
        *_in_order("near_key", "keys_here", "%near_i", shape),
        *_scores("near", shape),
        f"  %near_i_next = add i64 %near_i, {TOGETHER}",
        "  %near_i_more = icmp ult i64 %near_i_next, %in_order",
        "  br i1 %near_i_more, label %near_score, label %near_scored",
        "near_scored:",
        f"  br i1 %is_far, label %far_score, label %{following}",
        "far_score:",
        f"  %far_i = phi i64 [ 0, %{before} ], [ %in_order, %near_scored ], [ %far_i_next, %far_score ]",
        *_looked_up("far_key", "keys_here", "%far_i", shape),
        *_scores("far", shape),
        f"  %far_i_next = add i64 %far_i, {TOGETHER}",
        "  %far_i_more = icmp ult i64 %far_i_next, %seen",
        f"  br i1 %far_i_more, label %far_score, label %{following}",
    ]


def value_loops(shape: AttentionShape, before: str, following: str) -> list[str]:
    """Returns the loops that add up the values by their weights, to `%total0_0` and so on.

    Args:
        shape: As in `score_loops`.
        before: Likewise.
        following: Likewise.
    """
    names = [f"{g}_{v}" for g in range(shape.num_together) for v in _vectors(shape)]
    start = f"[ zeroinitializer, %{before} ]"
    near = [f"  %near{n} = phi {FLOATS} {start}, [ %near_more{n}, %near_add ]" for n in names]
    more = [(n, f"[ %near_more{n}, %near_added ], [ %far_more{n}, %far_add ]") for n in names]
    far = [f"  %far{n} = phi {FLOATS} {start}, {places}" for n, places in more]
    totals = [f"  %total{n} = phi {FLOATS} {places}" for n, places in more]
    return [
        "  br i1 %is_near, label %near_add, label %far_add",
        "near_add:",
        f"  %near_j = phi i64 [ 0, %{before} ], [ %near_j_next, %near_add ]",
        *near,
        *_in_order("near_value", "values_here", "%near_j", shape),
        *_added("near", shape, is_whole=True),
        f"  %near_j_next = add i64 %near_j, {TOGETHER}",
        "  %near_j_more = icmp ult i64 %near_j_next, %in_order",
        "  br i1 %near_j_more, label %near_add, label %near_added",
        "near_added:",
        "  br i1 %is_far, label %far_add, label %added",
        "far_add:",
        f"  %far_j = phi i64 [ 0, %{before} ], [ %in_order, %near_added ], [ %far_j_next, %far_add ]",
        *far,
        *_looked_up("far_value", "values_here", "%far_j", shape),
        *_added("far", shape, is_whole=False),
        f"  %far_j_next = add i64 %far_j, {TOGETHER}",
        "  %far_j_more = icmp ult i64 %far_j_next, %seen",
        "  br i1 %far_j_more, label %far_add, label %added",
        "added:",
        *totals,
        f"  br label %{following}",
    ]


def _vectors(shape: AttentionShape) -> range:
    return range(shape.head_size // LANES)


def _in_order(name: str, array: str, index: str, shape: AttentionShape) -> list[str]:
    """Returns what finds the keys or the values of positions that are stored one after the other."""
    return [
        f"  %{name}_position = add i64 %start, {index}",
        f"  %{name}_offset = mul i64 %{name}_position, {shape.head_size}",
        f"  %{name}0 = getelementptr float, ptr %{array}, i64 %{name}_offset",
        *[f"  %{name}{p} = getelementptr float, ptr %{name}0, i64 {p * shape.head_size}" for p in range(1, TOGETHER)],
    ]


def _looked_up(name: str, array: str, index: str, shape: AttentionShape) -> list[str]:
    """Returns what finds the keys or the values of positions before the pass or in other rows.

    After the last one that the row sees, it is that one again.
    """
    lines: list[str] = []
    for p in range(TOGETHER):
        n = f"{name}{p}"
        lines += [
            f"  %{n}_index = add i64 {index}, {p}",
            f"  %{n}_is_seen = icmp ult i64 %{n}_index, %seen",
            f"  %{n}_at = select i1 %{n}_is_seen, i64 %{n}_index, i64 %last_seen",
            f"  %{n}_is_before = icmp ult i64 %{n}_at, %before",
            f"  %{n}_near = add i64 %start, %{n}_at",
            f"  %{n}_beyond = sub i64 %{n}_at, %before",
            f"  %{n}_other = select i1 %{n}_is_before, i64 0, i64 %{n}_beyond",
            *load(f"{n}_far", "i64", "others_here", "i64", f"%{n}_other"),
            f"  %{n}_position = select i1 %{n}_is_before, i64 %{n}_near, i64 %{n}_far",
            f"  %{n}_offset = mul i64 %{n}_position, {shape.head_size}",
            f"  %{n} = getelementptr float, ptr %{array}, i64 %{n}_offset",
        ]
    return lines


def _scores(name: str, shape: AttentionShape) -> list[str]:
    """Returns what stores the scores of the keys `%near_key0` and so on."""
    lines: list[str] = []
    for p in range(TOGETHER):
        for v in _vectors(shape):
            lines += load(f"{name}_k{p}_{v}", FLOATS, f"{name}_key{p}", "float", str(v * LANES))
        for g in range(shape.num_together):
            lines.append(f"  %{name}_dot{g}_{p}_0 = fmul {FLOATS} %q{g}_0, %{name}_k{p}_0")
            for v in _vectors(shape)[1:]:
                operands = f"{FLOATS} %q{g}_{v}, {FLOATS} %{name}_k{p}_{v}, {FLOATS} %{name}_dot{g}_{p}_{v - 1}"
                lines.append(f"  %{name}_dot{g}_{p}_{v} = call {FLOATS} @llvm.fma.v{LANES}f32({operands})")
    few, last = f"<{TOGETHER} x float>", len(_vectors(shape)) - 1
    for g in range(shape.num_together):
        dots = [f"{name}_dot{g}_{p}_{last}" for p in range(TOGETHER)]
        lines += [
            *add_lanes(f"{name}_dots{g}_", dots, "float", LANES),
            f"  %{name}_scaled{g} = fmul {few} %{name}_dots{g}_4, %scales",
            f"  %{name}_score_at{g} = getelementptr float, ptr %scores{g}, i64 %{name}_i",
            f"  store {few} %{name}_scaled{g}, ptr %{name}_score_at{g}, align 4",
        ]
    return lines


def _added(name: str, shape: AttentionShape, *, is_whole: bool) -> list[str]:
    """Returns what adds the values `%near_value0` and so on, times their weights, to the sums.

    Args:
        is_whole: The row sees all of these positions; otherwise it may not see the last ones, whose weight is 0.
    """
    sums = {(g, v): f"{name}{g}_{v}" for g in range(shape.num_together) for v in _vectors(shape)}
    lines: list[str] = []
    for p in range(TOGETHER):
        for v in _vectors(shape):
            lines += load(f"{name}_v{p}_{v}", FLOATS, f"{name}_value{p}", "float", str(v * LANES))
        for g in range(shape.num_together):
            weight = f"{name}_weight{g}_{p}"
            lines += [
                f"  %{weight}_index = add i64 %{name}_j, {p}",
                *load(weight, "float", f"scores{g}", "float", f"%{weight}_index"),
            ]
            if not is_whole:
                lines.append(f"  %{weight}_seen = select i1 %{name}_value{p}_is_seen, float %{weight}, float 0.0")
                weight += "_seen"
            lines += spread(f"{name}_weights{g}_{p}", "float", weight, LANES)
            for v in _vectors(shape):
                total = f"{name}_sum{g}_{p}_{v}" if p + 1 < TOGETHER else f"{name}_more{g}_{v}"
                operands = f"{FLOATS} %{name}_weights{g}_{p}, {FLOATS} %{name}_v{p}_{v}, {FLOATS} %{sums[g, v]}"
                lines.append(f"  %{total} = call {FLOATS} @llvm.fma.v{LANES}f32({operands})")
                sums[g, v] = total
    return lines
