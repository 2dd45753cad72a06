"""Kernels on single rows, in Triton: residual sums with norms, and rotations that store keys and values.

They round to the compute type where transformers does. What they read may come in parts that are to be added: products
that were split leave their sum to the next kernel.
"""

import triton
import triton.language as tl

from specgen.models.fused.kernels.dependent_launch import allow_next, wait
from specgen.models.fused.kernels.split_inputs import place


@triton.jit
def _sum_of_parts(parts, part_stride, at, mask, bias, bias_at, NUM_PARTS: tl.constexpr, HAS_BIAS: tl.constexpr, like):
    """Adds the parts of a product at some places, in float32, rounds them to a type, and returns float32."""
    total = tl.load(parts + at, mask=mask, other=0.0).to(tl.float32)
    for part in tl.static_range(1, NUM_PARTS):
        total += tl.load(parts + part * part_stride + at, mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + bias_at, mask=mask, other=0.0).to(tl.float32)
    return total.to(like.dtype.element_ty).to(tl.float32)


@triton.jit
def _normed(values, weight, at, mask, epsilon, size, like):
    """Computes a root mean square norm of float32 values and rounds it once."""
    scale = 1.0 / tl.sqrt(tl.sum(values * values, 0) / size + epsilon)
    factors = tl.load(weight + at, mask=mask, other=0.0).to(tl.float32)
    return (values * scale * factors).to(like.dtype.element_ty)


@triton.jit(do_not_specialize=["part_stride"])
def add_and_norm(
    residual,
    parts,
    bias,
    out_weight,
    in_weight,
    sums,
    normed,
    part_stride,
    size,
    epsilon,
    residual_scale,
    HAS_ADDED: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_OUT_NORM: tl.constexpr,
    HAS_IN_NORM: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """Adds what a product computed to the residual stream, and norms it for the next product. Grid: rows.

    Args:
        residual: `[rows, size]`.
        parts: `[NUM_PARTS, rows, size]`, the outputs of attention or feed-forward.
        bias: `[size]`, of that product.
        out_weight: `[size]`, of the norm of these outputs, if there is one.
        in_weight: `[size]`, of the norm before the next product, if there is one.
        sums: `[rows, size]`, the new residual stream.
        normed: `[rows, size]`; without a norm nothing is written.
    """
    allow_next(IS_DEPENDENT)
    wait(IS_DEPENDENT)
    row = tl.program_id(0)
    channels = tl.arange(0, BLOCK)
    mask = channels < size
    at = row * size + channels
    total = tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
    if HAS_ADDED:
        added = _sum_of_parts(parts, part_stride, at, mask, bias, channels, NUM_PARTS, HAS_BIAS, residual)
        if HAS_OUT_NORM:
            added = _normed(added, out_weight, channels, mask, epsilon, size, residual).to(tl.float32)
        if HAS_SCALE:
            added = (added * residual_scale).to(residual.dtype.element_ty).to(tl.float32)
        rounded = (total + added).to(residual.dtype.element_ty)
        tl.store(sums + at, rounded, mask=mask)
        total = rounded.to(tl.float32)
    if HAS_IN_NORM:
        outputs = _normed(total, in_weight, channels, mask, epsilon, size, residual)
        tl.store(normed + row * size + place(channels, IS_SPLIT), outputs, mask=mask)


@triton.jit(do_not_specialize=["part_stride"])
def rotate_and_store(
    parts,
    bias,
    q_weight,
    k_weight,
    cosines,
    sines,
    positions,
    rotated_positions,
    queries,
    keys,
    values,
    part_stride,
    kv_stride,
    epsilon,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_NORM: tl.constexpr,
    ROTATED: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """Norms and rotates queries and keys, and stores keys and values. Grid: rows, all heads.

    Args:
        parts: `[NUM_PARTS, rows, (NUM_HEADS + 2 NUM_KV_HEADS) * SIZE]`: queries, keys and values side by side.
        bias: Of these.
        q_weight, k_weight: `[SIZE]`, of the norms of queries and keys.
        cosines, sines: `[capacity, ROTATED]`; the first half of the sines is negative.
        positions: int64 `[rows]`, where keys and values are stored.
        rotated_positions: int64 `[rows]`, by which queries and keys are rotated.
        queries: `[rows, NUM_HEADS, SIZE]`.
        keys, values: `[NUM_KV_HEADS, capacity, SIZE]`.
        ROTATED: Channels of a head that are rotated; 0: none.
    """
    allow_next(IS_DEPENDENT)
    wait(IS_DEPENDENT)
    row, head = tl.program_id(0), tl.program_id(1)
    channels = tl.arange(0, BLOCK)
    mask = channels < SIZE
    width = (NUM_HEADS + 2 * NUM_KV_HEADS) * SIZE
    at = head * SIZE + channels
    own = _sum_of_parts(parts, part_stride, row * width + at, mask, bias, at, NUM_PARTS, HAS_BIAS, queries)
    position = tl.load(positions + row)
    if head >= NUM_HEADS + NUM_KV_HEADS:
        kv_at = (head - NUM_HEADS - NUM_KV_HEADS).to(tl.int64) * kv_stride + position * SIZE + channels
        tl.store(values + kv_at, own.to(values.dtype.element_ty), mask=mask)
    else:
        is_query = channels < tl.where(head < NUM_HEADS, SIZE, 0)
        is_key = channels < tl.where(head < NUM_HEADS, 0, SIZE)
        scale = 1.0
        if HAS_NORM:
            scale = 1.0 / tl.sqrt(tl.sum(own * own, 0) / SIZE + epsilon)
            factors = tl.load(q_weight + channels, mask=is_query, other=0.0).to(tl.float32)
            factors += tl.load(k_weight + channels, mask=is_key, other=0.0).to(tl.float32)
            own = (own * scale * factors).to(queries.dtype.element_ty).to(tl.float32)
        if ROTATED > 0:
            is_rotated = channels < ROTATED
            partner = tl.where(channels < ROTATED // 2, channels + ROTATED // 2, channels - ROTATED // 2)
            partner = tl.where(is_rotated, partner, channels)
            other_at = head * SIZE + partner
            other = _sum_of_parts(
                parts, part_stride, row * width + other_at, mask, bias, other_at, NUM_PARTS, HAS_BIAS, queries
            )
            if HAS_NORM:
                factors = tl.load(q_weight + partner, mask=is_query, other=0.0).to(tl.float32)
                factors += tl.load(k_weight + partner, mask=is_key, other=0.0).to(tl.float32)
                other = (other * scale * factors).to(queries.dtype.element_ty).to(tl.float32)
            table_at = tl.load(rotated_positions + row) * ROTATED + channels
            cosine = tl.load(cosines + table_at, mask=is_rotated, other=1.0)
            sine = tl.load(sines + table_at, mask=is_rotated, other=0.0)
            # Products round to the type of the table, as in transformers.
            turned = (own * cosine.to(tl.float32)).to(cosine.dtype).to(tl.float32)
            turned += (other * sine.to(tl.float32)).to(cosine.dtype).to(tl.float32)
            own = tl.where(is_rotated, turned, own)
        rounded = own.to(queries.dtype.element_ty)
        query_at = (row * NUM_HEADS + head) * SIZE + channels
        tl.store(queries + query_at, rounded, mask=is_query)
        kv_at = (head - NUM_HEADS).to(tl.int64) * kv_stride + position * SIZE + channels
        tl.store(keys + kv_at, rounded, mask=is_key)
