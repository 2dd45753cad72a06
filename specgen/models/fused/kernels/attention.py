"""Kernels of attention for few rows, in Triton: parts of the positions in parallel, then their sum.

Parts and tiles have the same size in every pass. So the result of a row does not depend on the other rows of the pass,
bit for bit. Dividing the positions is Flash-Decoding (Dao et al. 2023), here with parts of fixed length.
"""

import triton
import triton.language as tl

from specgen.models.fused.kernels.dependent_launch import allow_next, wait
from specgen.models.fused.kernels.split_inputs import place


@triton.jit(do_not_specialize=["num_rows"])
def attend_parts(
    queries,
    keys,
    values,
    positions,
    tree_start,
    tree_sees,
    part_sums,
    part_maxima,
    part_weights,
    scale,
    cap,
    kv_stride,
    num_rows,
    WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_TREE: tl.constexpr,
    TREE_ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    TOKENS: tl.constexpr,
    TILE: tl.constexpr,
    SIZE: tl.constexpr,
    SIZE_PADDED: tl.constexpr,
    PART: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """Attends to one part of the positions with the query heads of one key-value head, for some tokens.

    Grid: key-value heads, tiles of `TOKENS` tokens, parts of `PART` positions.

    Args:
        queries: `[num_rows, heads, SIZE]`.
        keys, values: `[kv_heads, capacity, SIZE]`, of which head h begins at `h * kv_stride`.
        positions: int64 `[num_rows]`: where each row is stored; it sees the positions up to there. In a tree, where it
            is in its own text.
        tree_start: int64 `[1]`: positions before the tree.
        tree_sees: int64 `[num_rows, TREE_ROWS]`: which rows of the tree a row sees.
        part_sums: float32 `[parts, num_rows, heads, SIZE]`, weighted sums of values.
        part_maxima, part_weights: float32 `[parts, num_rows, heads]`, largest score (base 2) and sum of weights.
        scale: Of scores, times log2(e) without a cap.
    """
    allow_next(IS_DEPENDENT)
    wait(IS_DEPENDENT)
    head, tile, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_heads = tl.num_programs(0) * GROUP
    rows = tl.arange(0, TILE)
    token = tile * TOKENS + rows // GROUP
    query_head = head * GROUP + rows % GROUP
    is_row = (rows < TOKENS * GROUP) & (token < num_rows)
    position = tl.load(positions + token, mask=is_row, other=-1)
    if HAS_TREE:
        first_node = tl.load(tree_start)
        last = first_node + TREE_ROWS - 1
    else:
        last = tl.max(position, 0)
    first_column = part * PART
    end = tl.minimum(first_column + PART, last + 1)
    channels = tl.arange(0, SIZE_PADDED)
    is_channel = channels < SIZE
    query_at = (token * num_heads + query_head) * SIZE
    query = tl.load(
        queries + query_at[:, None] + channels[None, :], mask=is_row[:, None] & is_channel[None, :], other=0.0
    )
    key_base, value_base = keys + head.to(tl.int64) * kv_stride, values + head.to(tl.int64) * kv_stride
    maximum = tl.full([TILE], float("-inf"), tl.float32)
    weight = tl.zeros([TILE], tl.float32)
    total = tl.zeros([TILE, SIZE_PADDED], tl.float32)
    for column in range(first_column, end, BLOCK):
        columns = column + tl.arange(0, BLOCK)
        is_column = columns < end
        at = columns[:, None] * SIZE + channels[None, :]
        is_read = is_column[:, None] & is_channel[None, :]
        key = tl.load(key_base + at, mask=is_read, other=0.0)
        scores = tl.dot(query, tl.trans(key)) * scale
        if HAS_CAP:
            # tanh(x) = 1 - 2 / (exp(2 x) + 1)
            scores = cap * (1.0 - 2.0 / (tl.exp(2.0 * scores / cap) + 1.0)) * 1.4426950408889634
        if HAS_TREE:
            offset = columns - first_node
            is_node = (offset >= 0) & (offset < TREE_ROWS)
            sees = tl.load(
                tree_sees + token[:, None] * TREE_ROWS + offset[None, :],
                mask=is_row[:, None] & is_node[None, :],
                other=0,
            )
            is_text = offset[None, :] < 0
            if WINDOW > 0:
                is_text = is_text & (columns[None, :] > position[:, None] - WINDOW)
            is_seen = (sees > 0) | is_text
        else:
            is_seen = columns[None, :] <= position[:, None]
            if WINDOW > 0:
                is_seen = is_seen & (columns[None, :] > position[:, None] - WINDOW)
        scores = tl.where(is_seen & is_column[None, :], scores, float("-inf"))
        larger = tl.maximum(maximum, tl.max(scores, 1))
        reference = tl.where(larger == float("-inf"), 0.0, larger)
        weights = tl.exp2(scores - reference[:, None])
        kept = tl.exp2(maximum - reference)
        weight = weight * kept + tl.sum(weights, 1)
        if HAS_TREE:
            # After the tree, values of an earlier pass may be NaN; masked ones are multiplied by 0.
            is_read = is_read & (tl.max(is_seen.to(tl.int32), 0) > 0)[:, None]
        value = tl.load(value_base + at, mask=is_read, other=0.0)
        total = total * kept[:, None] + tl.dot(weights.to(value.dtype), value)
        maximum = larger
    part_at = (part * num_rows + token) * num_heads + query_head
    tl.store(part_maxima + part_at, maximum, mask=is_row)
    tl.store(part_weights + part_at, weight, mask=is_row)
    tl.store(
        part_sums + part_at[:, None] * SIZE + channels[None, :],
        total,
        mask=is_row[:, None] & is_channel[None, :],
    )


@triton.jit(do_not_specialize=["num_parts"])
def sum_parts(
    part_sums,
    part_maxima,
    part_weights,
    attended,
    num_parts,
    SIZE: tl.constexpr,
    SIZE_PADDED: tl.constexpr,
    CHUNK: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """Adds the parts of one query head of one token, `CHUNK` at a time. Grid: tokens, query heads.

    More chunks, whose parts have no visible position, change no bit.

    Args:
        part_sums, part_maxima, part_weights: As in `attend_parts`.
        attended: `[num_rows, heads, SIZE]`.
        num_parts: Of the positions.
    """
    allow_next(IS_DEPENDENT)
    wait(IS_DEPENDENT)
    token, head = tl.program_id(0), tl.program_id(1)
    num_heads = tl.num_programs(1)
    per_part = tl.num_programs(0) * num_heads
    row = token * num_heads + head
    channels = tl.arange(0, SIZE_PADDED)
    is_channel = channels < SIZE
    maximum = float("-inf")
    weight = 0.0
    total = tl.zeros([SIZE_PADDED], tl.float32)
    for first in range(0, num_parts, CHUNK):
        parts = first + tl.arange(0, CHUNK)
        at = parts * per_part + row
        maxima = tl.load(part_maxima + at, mask=parts < num_parts, other=float("-inf"))
        weights = tl.load(part_weights + at, mask=parts < num_parts, other=0.0)
        is_seen = maxima > float("-inf")
        sums = tl.load(
            part_sums + at[:, None] * SIZE + channels[None, :], mask=is_seen[:, None] & is_channel[None, :], other=0.0
        )
        larger = tl.maximum(maximum, tl.max(maxima, 0))
        reference = tl.where(larger == float("-inf"), 0.0, larger)
        factors = tl.exp2(maxima - reference)
        kept = tl.exp2(maximum - reference)
        weight = weight * kept + tl.sum(factors * weights, 0)
        total = total * kept + tl.sum(factors[:, None] * sums, 0)
        maximum = larger
    at = token * num_heads * SIZE + place(head * SIZE + channels, IS_SPLIT)
    # A padding row may see nothing. It must not become NaN: others multiply what it stores by 0.
    weight = tl.where(weight == 0.0, 1.0, weight)
    tl.store(attended + at, (total / weight).to(attended.dtype.element_ty), mask=is_channel)
