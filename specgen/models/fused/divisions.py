"""Chooses how a product of few rows is divided among the programs of a card.

The choices for 16 bits were fastest, or nearly so, for 7B and 0.5B models on an H200; those for nf4 were so for an
earlier version of the kernel (tests/gpu/RESULTS.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from specgen.models.gemm_4bit import BLOCK

MAX_PARTS = 8
PROGRAMS_PER_PROCESSOR = 2
"""Programs that a multiprocessor should have, at least."""


@dataclass(frozen=True, slots=True)
class Division:
    """How a product is divided among programs.

    Args:
        columns: Outputs of a program.
        block: Inputs that a program reads at once.
        num_parts: Parts of the inputs.
        num_warps: Of a program.
        num_stages: Reads that are under way.
    """

    columns: int
    block: int
    num_parts: int
    num_warps: int = 4
    num_stages: int = 4


def dense_division(columns: int, inputs: int, num_processors: int, *, is_whole: bool = False) -> Division:
    """Divides a product with 16-bit weights.

    Args:
        columns: Of the weight.
        inputs: Of the weight.
        num_processors: Multiprocessors of the card.
        is_whole: The inputs are not divided.
    """
    if is_whole:
        return Division(32, 128, 1, num_warps=2)
    return Division(32, 128, num_parts_for(-(-columns // 32), -(-inputs // 128), num_processors))


def nf4_division(columns: int, inputs: int, num_processors: int, *, is_whole: bool = False) -> Division:
    """Divides a product with nf4 weights; the arguments are those of `dense_division`."""
    if is_whole:
        return Division(32, 2 * BLOCK, 1)
    return Division(64, BLOCK, num_parts_for(-(-columns // 64), inputs // BLOCK, num_processors))


def num_parts_for(num_tiles: int, num_blocks: int, num_processors: int) -> int:
    """Returns parts of the inputs, a power of 2: enough programs for each multiprocessor, and no empty part."""
    wanted = min(PROGRAMS_PER_PROCESSOR * num_processors / num_tiles, MAX_PARTS)
    parts = 1
    while parts < wanted and (2 * parts - 1) * -(-num_blocks // (2 * parts)) < num_blocks:
        parts *= 2
    return parts
