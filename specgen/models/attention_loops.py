"""Writes the loops of the attention kernel in LLVM IR: over the positions that a row sees, some at once.

The positions that are stored one after the other are near, the others are far: where each of these is has to be looked
up. Both are computed alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from specgen.models.sums_code import add_lanes
from specgen.models.vector_code import FLOATS, LANES, load, spread

if TYPE_CHECKING:
    from specgen.models.attention_code import AttentionShape

TOGETHER = 4
"""Positions that are computed at once: the lanes of so many vectors are added up together."""
_SCORES = {"scores0": "ptr", "scores_stride": "i64"}
_NEAR = {"start": "i64", "from": "i64", "to": "i64"}
_FAR = {"start": "i64", "before": "i64", "others": "ptr", "in_order": "i64", "seen": "i64"}
PARAMETERS = {
    "near_scores": {"query": "ptr", "keys_here": "ptr", **_SCORES, "scale": "float", **_NEAR},
    "far_scores": {"query": "ptr", "keys_here": "ptr", **_SCORES, "scale": "float", **_FAR},
    "weigh": {**_SCORES, "seen": "i64", "output": "ptr"},
    "near_values": {"output": "ptr", "values_here": "ptr", **_SCORES, **_NEAR},
    "far_values": {"output": "ptr", "values_here": "ptr", **_SCORES, **_FAR},
}
"""Names and types of what the functions get.

All compute the heads of one row that are computed at once: addresses of its first query, of the keys or values of these
heads, of its first head's scores, and of its first output. Near positions are `from` to `to`, counted from the row's
first one, which is stored at `start`. Far ones are those from `in_order` on, of `seen`: the first `before` positions
are stored from `start` on, and `others` has where the rest is.
"""

_LAST_SEEN = "  %last_seen = sub i64 %seen, 1"


def scores_code(shape: AttentionShape) -> str:
    """Returns functions that store the scores of positions, and one that turns all scores of a row into weights."""
    return "\n".join([_near_scores(shape), _far_scores(shape), _weigh(shape)])


def values_code(shape: AttentionShape) -> str:
    """Returns functions that add the values of positions by their weights; the one of far ones finishes the row."""
    return "\n".join([_near_values(shape), _far_values(shape)])


def _function(name: str, lines: list[str]) -> str:
    parameters = ", ".join(f"{kind} %{key}" for key, kind in PARAMETERS[name].items())
    return "\n".join([f"define internal void @{name}({parameters}) {{\nentry:", *lines, "  ret void\n}"])


def _loop(label: str, index: str, bounds: tuple[str, str], lines: list[str]) -> list[str]:
    """Returns a loop over groups of positions.

    Args:
        label: Of the loop.
        index: Name of the first position of a group.
        bounds: The first position, and the one after the last.
        lines: What it computes, phis first.
    """
    return [
        f"  br label %{label}",
        f"{label}:",
        f"  %{index} = phi i64 [ {bounds[0]}, %entry ], [ %{index}_next, %{label} ]",
        *lines,
        f"  %{index}_next = add i64 %{index}, {TOGETHER}",
        f"  %{index}_more = icmp ult i64 %{index}_next, {bounds[1]}",
        f"  br i1 %{index}_more, label %{label}, label %{label}_done",
        f"{label}_done:",
    ]


def _near_scores(shape: AttentionShape) -> str:
    scores = [*_in_order("near_key", "keys_here", "%near_i", shape), *_scores("near", shape)]
    loop = _loop("near_score", "near_i", ("%from", "%to"), scores)
    return _function("near_scores", [*_score_places(shape), *_queries(shape), *loop])


def _far_scores(shape: AttentionShape) -> str:
    scores = [*_looked_up("far_key", "keys_here", "%far_i", shape), *_scores("far", shape)]
    loop = _loop("far_score", "far_i", ("%in_order", "%seen"), scores)
    return _function("far_scores", [*_score_places(shape), *_queries(shape), _LAST_SEEN, *loop])


def _weigh(shape: AttentionShape) -> str:
    """Returns the function that turns scores into weights, stores the factor of each head, and sets its sums to 0."""
    lines = _score_places(shape)
    for g in range(shape.num_together):
        lines += [
            f"  %sum{g} = call float @weights(ptr %scores{g}, i64 %seen)",
            f"  %share{g} = fdiv float 1.0, %sum{g}",
            *_share_place(g),
            f"  store float %share{g}, ptr %share_at{g}, align 4",
        ]
    return _function("weigh", [*lines, *_stored(shape, "sums", dict.fromkeys(_sums(shape), "zeroinitializer"))])


def _near_values(shape: AttentionShape) -> str:
    sums = _sums(shape)
    added = [
        *[f"  %near{n} = phi {FLOATS} [ %before{n}, %entry ], [ %near_more{n}, %near_add ]" for n in sums],
        *_in_order("near_value", "values_here", "%near_j", shape),
        *_added("near", shape, is_whole=True),
    ]
    loop = _loop("near_add", "near_j", ("%from", "%to"), added)
    stored = _stored(shape, "total", {n: f"%near_more{n}" for n in sums})
    return _function("near_values", [*_score_places(shape), *_loaded(shape, "before"), *loop, *stored])


def _far_values(shape: AttentionShape) -> str:
    sums = _sums(shape)
    added = [
        *[f"  %far{n} = phi {FLOATS} [ %near{n}, %entry ], [ %far_more{n}, %far_add ]" for n in sums],
        *_looked_up("far_value", "values_here", "%far_j", shape),
        *_added("far", shape, is_whole=False),
    ]
    loop = _loop("far_add", "far_j", ("%in_order", "%seen"), added)
    lines = [*_score_places(shape), *_loaded(shape, "near"), _LAST_SEEN, *loop]
    for g in range(shape.num_together):
        lines += [
            *_share_place(g),
            f"  %share{g} = load float, ptr %share_at{g}, align 4",
            *spread(f"shares{g}", "float", f"share{g}", LANES),
        ]
    lines += [f"  %out{g}_{v} = fmul {FLOATS} %far_more{g}_{v}, %shares{g}" for g, v in sums.values()]
    return _function("far_values", [*lines, *_stored(shape, "out_at", {n: f"%out{n}" for n in sums})])


def _vectors(shape: AttentionShape) -> range:
    return range(shape.head_size // LANES)


def _sums(shape: AttentionShape) -> dict[str, tuple[int, int]]:
    """Returns the vectors of sums by a name: the head, and the vector of its channels."""
    return {f"{g}_{v}": (g, v) for g in range(shape.num_together) for v in _vectors(shape)}


def _score_places(shape: AttentionShape) -> list[str]:
    """Returns what finds the scores of all heads but the first."""
    heads = range(1, shape.num_together)
    return [f"  %scores{g} = getelementptr float, ptr %scores{g - 1}, i64 %scores_stride" for g in heads]


def _share_place(head: int) -> list[str]:
    """Returns what finds where a head's factor is stored: in the last value of its scores' memory, after all scores."""
    return [
        f"  %share_index{head} = sub i64 %scores_stride, 1",
        f"  %share_at{head} = getelementptr float, ptr %scores{head}, i64 %share_index{head}",
    ]


def _queries(shape: AttentionShape) -> list[str]:
    """Returns what loads the queries and spreads the scale."""
    lines = spread("scales", "float", "scale", TOGETHER)
    for n, (g, v) in _sums(shape).items():
        lines += load(f"q{n}", FLOATS, "query", "float", str(g * shape.head_size + v * LANES))
    return lines


def _loaded(shape: AttentionShape, name: str) -> list[str]:
    """Returns what loads the sums from the outputs."""
    lines: list[str] = []
    for n, (g, v) in _sums(shape).items():
        lines += load(f"{name}{n}", FLOATS, "output", "float", str(g * shape.head_size + v * LANES))
    return lines


def _stored(shape: AttentionShape, name: str, values: dict[str, str]) -> list[str]:
    """Returns what stores sums in the outputs."""
    lines: list[str] = []
    for n, (g, v) in _sums(shape).items():
        lines += [
            f"  %{name}{n} = getelementptr float, ptr %output, i64 {g * shape.head_size + v * LANES}",
            f"  store {FLOATS} {values[n]}, ptr %{name}{n}, align 4",
        ]
    return lines


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
            *load(f"{n}_far", "i64", "others", "i64", f"%{n}_other"),
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
