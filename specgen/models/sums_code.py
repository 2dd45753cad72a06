"""Writes the addition of a vector's lanes in LLVM IR."""

from __future__ import annotations

from collections.abc import Sequence


def add_lanes(name: str, given: Sequence[str], kind: str, lanes: int) -> list[str]:
    """Returns what adds up the lanes of four vectors. The four sums are `%{name}4`.

    The four are added up together, as in the transposition of a matrix: one after the other takes three times as many
    instructions, which was a third of the time of four rows in int8.

    Args:
        name: Of the result, and the start of all other names.
        given: Names of the vectors.
        kind: Type of a lane: `i32` or `float`.
        lanes: 8 or 16.
    """
    first, second, third, fourth = given
    pairs = ((0, 0), (1, 0), (0, 1), (1, 1)), ((0, 2), (1, 2), (0, 3), (1, 3))
    fours = ((0, 0), (0, 1), (1, 0), (1, 1)), ((0, 2), (0, 3), (1, 2), (1, 3))
    lines = []
    for total, left, right, picked in (
        (f"{name}_ab", first, second, pairs),
        (f"{name}_cd", third, fourth, pairs),
        (f"{name}{lanes}", f"{name}_ab", f"{name}_cd", fours),
    ):
        # (vector, lane) in each group of four lanes.
        masks = [
            [vector * lanes + group + lane for group in range(0, lanes, 4) for vector, lane in places]
            for places in picked
        ]
        lines += _added(total, (left, right), kind, lanes, masks)
    while lanes > 4:
        whole, lanes = lanes, lanes // 2
        halves = [range(lanes), range(lanes, whole)]
        lines += _added(f"{name}{lanes}", (f"{name}{whole}", f"{name}{whole}"), kind, whole, halves)
    return lines


def _added(total: str, given: tuple[str, str], kind: str, lanes: int, masks: Sequence[Sequence[int]]) -> list[str]:
    """Returns what picks lanes of two vectors twice and adds these."""
    first, second = given
    lines, operation = [], "fadd" if kind == "float" else "add"
    for index, mask in enumerate(masks):
        vectors = f"<{lanes} x {kind}> %{first}, <{lanes} x {kind}> %{second}"
        places = ", ".join(f"i32 {lane}" for lane in mask)
        lines.append(f"  %{total}_{index} = shufflevector {vectors}, <{len(mask)} x i32> <{places}>")
    return [*lines, f"  %{total} = {operation} <{len(masks[0])} x {kind}> %{total}_0, %{total}_1"]
