"""Matrix products of few rows, in Triton: weights in 16 bits or in nf4.

Inputs are padded to a tile of rows. The products of a row are added in an order that does not depend on the other rows,
so its result does not depend on them either, bit for bit.
"""

import triton
import triton.language as tl

from specgen.models.fused.kernels.dependent_launch import allow_next, wait
from specgen.models.fused.kernels.split_inputs import place


@triton.jit
def _activated(gate, up, like, IS_SILU: tl.constexpr):
    """Returns the activated gate times up; all is rounded where transformers does."""
    gate, up = gate.to(like.dtype.element_ty).to(tl.float32), up.to(like.dtype.element_ty).to(tl.float32)
    if IS_SILU:
        active = gate / (1.0 + tl.exp(-gate))
    else:
        inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        active = gate / (1.0 + tl.exp(-2.0 * inner))  # (1 + tanh x) / 2 is the sigmoid of 2 x
    return active.to(like.dtype.element_ty).to(tl.float32) * up


@triton.jit
def _write(total, out, bias, row, num_rows, columns, num_columns, part, HAS_BIAS: tl.constexpr, IS_SPLIT: tl.constexpr):
    """Writes a tile of a part of the outputs."""
    if HAS_BIAS:
        total += tl.load(bias + columns, mask=columns < num_columns, other=0.0).to(tl.float32)[None, :]
    at = (part * num_rows + row[:, None]) * num_columns + place(columns, IS_SPLIT)[None, :]
    mask = (row[:, None] < num_rows) & (columns[None, :] < num_columns)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def multiply(
    inputs,
    weight,
    bias,
    out,
    num_rows,
    NUM_COLUMNS: tl.constexpr,
    NUM_INPUTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GATE: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    TILE: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """Multiplies by a weight in 16 bits. Grid: tiles of columns, parts of the inputs.

    Args:
        inputs: `[num_rows, NUM_INPUTS]`, at most `TILE` rows.
        weight: `[NUM_COLUMNS, NUM_INPUTS]`; with a gate `[2 NUM_COLUMNS, NUM_INPUTS]`: gates, then ups.
        bias: `[NUM_COLUMNS]`; only without parts and gate.
        out: `[NUM_PARTS, num_rows, NUM_COLUMNS]`; float32 if there are parts.
        IS_SPLIT: Outputs are stored in the order of `split_inputs`.
        GATE: `none`, `silu` or `gelu_tanh`: what is written is the activated gate times up.
    """
    column, part = tl.program_id(0) * COLUMNS, tl.program_id(1)
    rows, columns, steps = tl.arange(0, TILE), column + tl.arange(0, COLUMNS), tl.arange(0, BLOCK)
    is_row, is_column = rows < num_rows, columns < NUM_COLUMNS
    NUM_BLOCKS: tl.constexpr = (NUM_INPUTS + BLOCK - 1) // BLOCK
    PER_PART: tl.constexpr = (NUM_BLOCKS + NUM_PARTS - 1) // NUM_PARTS * BLOCK
    first = part * PER_PART
    end = tl.minimum(first + PER_PART, NUM_INPUTS)
    wait(IS_DEPENDENT)
    input_at = inputs + rows[:, None] * NUM_INPUTS + steps[None, :]
    weight_at = weight + columns[:, None].to(tl.int64) * NUM_INPUTS + steps[None, :]
    up_at = weight_at + NUM_COLUMNS * NUM_INPUTS
    total = tl.zeros([TILE, COLUMNS], tl.float32)
    ups = tl.zeros([TILE, COLUMNS], tl.float32)
    for start in range(first, end, BLOCK):
        is_step = (start + steps < end)[None, :]
        given = tl.load(input_at + start, mask=is_row[:, None] & is_step, other=0.0)
        factors = tl.load(weight_at + start, mask=is_column[:, None] & is_step, other=0.0)
        total = tl.dot(given, tl.trans(factors), total)
        if GATE != "none":
            up_factors = tl.load(up_at + start, mask=is_column[:, None] & is_step, other=0.0)
            ups = tl.dot(given, tl.trans(up_factors), ups)
    allow_next(IS_DEPENDENT)
    if GATE != "none":
        total = _activated(total, ups, out, GATE == "silu")
    _write(total, out, bias, rows, num_rows, columns, NUM_COLUMNS, part, HAS_BIAS, IS_SPLIT)


@triton.jit
def _unpacked(packed, code, like, ASSEMBLY: tl.constexpr):
    """Returns the even and the odd weights of packed bytes without their scale.

    A byte holds an even weight in its high half.

    Args:
        packed: uint8, its last dimension a multiple of 4 long.
        code: As in `multiply_nf4`.
        like: A pointer to the type of the weights.
        ASSEMBLY: See `unpacking`; empty: none.
    """
    if ASSEMBLY != "":
        even, odd = tl.inline_asm_elementwise(
            ASSEMBLY,
            "=r,=r,=r,=r,r",
            [packed],
            dtype=(like.dtype.element_ty, like.dtype.element_ty),
            is_pure=True,
            pack=4,
        )
    else:
        even = tl.load(code + (packed >> 4).to(tl.int32)).to(like.dtype.element_ty)
        odd = tl.load(code + (packed & 15).to(tl.int32)).to(like.dtype.element_ty)
    return even, odd


@triton.jit
def _scaled_dot(total, even_inputs, odd_inputs, packed, scales, code, like, ASSEMBLY: tl.constexpr):
    """Adds the products of one block of 64 inputs, whose weights have a scale per column."""
    even, odd = _unpacked(packed, code, like, ASSEMBLY)
    products = tl.dot(even_inputs, tl.trans(even))
    products = tl.dot(odd_inputs, tl.trans(odd), products)
    return total + products * scales[None, :]


@triton.jit(do_not_specialize=["num_rows"])
def multiply_nf4(
    inputs,
    weight,
    scales,
    code,
    bias,
    out,
    num_rows,
    NUM_COLUMNS: tl.constexpr,
    NUM_INPUTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GATE: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    TILE: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNROLLED: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """Multiplies by a weight in nf4. Grid: tiles of rows, tiles of columns, parts of the inputs.

    More than `TILE` rows are two tiles, which unpack the weights twice: one larger tile took twice the registers, and
    four times as long on an H200.

    Args:
        inputs: `[num_rows, NUM_INPUTS]` in the order of `split_inputs`.
        weight: uint8 `[NUM_COLUMNS, NUM_INPUTS / 2]` as bitsandbytes packs it; with a gate twice as many rows.
        scales: float32 `[NUM_INPUTS / 64, NUM_COLUMNS]`; with a gate twice as many columns.
        code: float32 `[16]`, the values of the codes; read without assembly only.
        UNROLLED: Blocks that are read at once.
        bias, out, GATE: As in `multiply`.
    """
    rows, columns = tl.program_id(0) * TILE + tl.arange(0, TILE), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    part, pairs = tl.program_id(2), tl.arange(0, 32)
    is_row = rows < num_rows
    NUM_BLOCKS: tl.constexpr = NUM_INPUTS // 64
    PER_PART: tl.constexpr = (NUM_BLOCKS + NUM_PARTS - 1) // NUM_PARTS
    SCALES: tl.constexpr = NUM_COLUMNS if GATE == "none" else 2 * NUM_COLUMNS
    first = part * PER_PART
    end = tl.minimum(first + PER_PART, NUM_BLOCKS)
    wait(IS_DEPENDENT)
    input_at = inputs + rows[:, None] * NUM_INPUTS + pairs[None, :]
    weight_at = weight + columns[:, None].to(tl.int64) * (NUM_INPUTS // 2) + pairs[None, :]
    up_at = weight_at + NUM_COLUMNS * (NUM_INPUTS // 2)
    total = tl.zeros([TILE, COLUMNS], tl.float32)
    ups = tl.zeros([TILE, COLUMNS], tl.float32)
    for start in range(first, end, UNROLLED):
        for offset in tl.static_range(UNROLLED):
            block = start + offset
            # After the end, scales of 0 stand for the blocks of another part.
            has_block = columns < tl.where(block < end, NUM_COLUMNS, 0)
            scales_at = scales + block * SCALES + columns
            is_given = is_row[:, None] & (pairs < (NUM_BLOCKS - block) * 32)[None, :]
            evens = tl.load(input_at + block * 64, mask=is_given, other=0.0)
            odds = tl.load(input_at + block * 64 + 32, mask=is_given, other=0.0)
            own_scales = tl.load(scales_at, mask=has_block, other=0.0)
            packed = tl.load(weight_at + block * 32, mask=has_block[:, None], other=0)
            total = _scaled_dot(total, evens, odds, packed, own_scales, code, inputs, ASSEMBLY)
            if GATE != "none":
                own_scales = tl.load(scales_at + NUM_COLUMNS, mask=has_block, other=0.0)
                packed = tl.load(up_at + block * 32, mask=has_block[:, None], other=0)
                ups = _scaled_dot(ups, evens, odds, packed, own_scales, code, inputs, ASSEMBLY)
    allow_next(IS_DEPENDENT)
    if GATE != "none":
        total = _activated(total, ups, inputs, GATE == "silu")
    _write(total, out, bias, rows, num_rows, columns, NUM_COLUMNS, part, HAS_BIAS, IS_SPLIT)
