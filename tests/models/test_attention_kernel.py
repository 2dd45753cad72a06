"""Our own attention kernel computes what torch computes in float64, each row alone."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from specgen.core.draft_tree import ROOT
from specgen.models import attention_kernel as module
from specgen.models.attention_code import ARGUMENTS, AttentionShape, attention_code
from specgen.models.attention_kernel import (
    AttentionKernel,
    NewRows,
    SeenPositions,
    attention_kernel,
    has_attention_kernel,
    heads_together,
    rows_at_once,
    seen_by_rows,
)
from specgen.models.attention_loops import TOGETHER
from specgen.models.kv_store_code import store_code
from specgen.models.native_code import NativeCode
from specgen.models.rotary import rotate
from specgen.models.tree_mask import tree_mask
from specgen.models.vector_code import CpuVectors
from tests.fakes import threads

needs_kernel = pytest.mark.skipif(not has_attention_kernel(), reason="needs AVX2")
SHAPES = [
    AttentionShape(4, 2, 32, num_together=2),
    AttentionShape(14, 7, 64, num_together=7),
    AttentionShape(12, 6, 128, num_together=3),
    AttentionShape(4, 4, 256),
]
CAPACITY = 96


def kernel_of(shape: AttentionShape) -> AttentionKernel:
    kernel = attention_kernel(shape)
    assert kernel is not None
    return kernel


def in_chunks(kernel: AttentionKernel) -> AttentionKernel:
    """Changes a kernel so that its chunks have two groups of positions."""
    kernel._chunk = 2 * TOGETHER
    return kernel


def stored(shape: AttentionShape) -> tuple[Tensor, Tensor]:
    sizes = (shape.num_heads // shape.group, CAPACITY, shape.head_size)
    return torch.randn(sizes), torch.randn(sizes)


def attend(
    kernel: AttentionKernel, queries: Tensor, stored: tuple[Tensor, Tensor], seen: SeenPositions, scale: float
) -> Tensor:
    """Attends with queries whose keys and values are stored already."""
    num_new, first = len(queries), int(seen.starts[0] + seen.num_before[0])
    keys, values = (tensor[:, first : first + num_new].transpose(0, 1).contiguous() for tensor in stored)
    return kernel.attend(NewRows(torch.cat([queries, keys], dim=1), values, None, first), stored, seen, scale)


def expected(queries: Tensor, keys: Tensor, values: Tensor, sees: Tensor, scale: float) -> Tensor:
    """Attends in float64; `sees` is `[rows, positions]`."""
    group = queries.shape[1] // keys.shape[0]
    num_seen = sees.shape[1]
    wide_keys = keys[:, :num_seen].double().repeat_interleave(group, dim=0)
    wide_values = values[:, :num_seen].double().repeat_interleave(group, dim=0)
    scores = queries.double().transpose(0, 1) @ wide_keys.transpose(1, 2) * scale
    weights = scores.masked_fill(~sees, -math.inf).softmax(dim=-1)
    return (weights @ wide_values).transpose(0, 1).flatten(1).float()


IN_CHUNKS = functools.cache(lambda: in_chunks(AttentionKernel(SHAPES[0])))


@needs_kernel
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("first", "num_rows"), [(0, 1), (0, 17), (15, 1), (16, 3), (40, 8), (70, 17)])
def test_rows_attend_as_in_float64_and_each_alone(shape: AttentionShape, first: int, num_rows: int) -> None:
    torch.manual_seed(first)
    kernel, (keys, values) = kernel_of(shape), stored(shape)
    queries = torch.randn(num_rows, shape.num_heads + 3, shape.head_size)[:, : shape.num_heads]
    scale = shape.head_size**-0.5

    outputs = attend(kernel, queries, (keys, values), seen_by_rows(first, num_rows, None), scale)

    sees = torch.ones(num_rows, first + num_rows, dtype=torch.bool).tril(first)
    torch.testing.assert_close(outputs, expected(queries, keys, values, sees, scale), rtol=1e-5, atol=2e-6)
    for row in range(num_rows):
        seen = seen_by_rows(first + row, 1, None)
        assert torch.equal(attend(kernel, queries[row : row + 1], (keys, values), seen, scale)[0], outputs[row])


@needs_kernel
@given(st.data(), st.integers(0, 40), st.integers(1, 12), st.sampled_from([None, 1, 2, 5, 20, 64]))
def test_rows_of_trees_see_their_ancestors_within_the_window(
    data: st.DataObject, first: int, num_rows: int, window: int | None
) -> None:
    parents = [data.draw(st.integers(ROOT, row - 1)) for row in range(num_rows)]
    shape = SHAPES[0]
    kernel, (keys, values) = kernel_of(shape), stored(shape)
    queries = torch.randn(num_rows, shape.num_heads, shape.head_size)

    # In chunks, and whole for the single row.
    outputs = attend(IN_CHUNKS(), queries, (keys, values), seen_by_rows(first, num_rows, window, parents), 0.3)
    last = attend(kernel, queries[-1:], (keys, values), seen_by_rows(first, 1, window, parents), 0.3)

    assert torch.equal(last, outputs[-1:])
    sees = tree_mask(parents, num_rows, (0, first), window)
    torch.testing.assert_close(outputs, expected(queries, keys, values, sees, 0.3), rtol=1e-5, atol=2e-6)


@needs_kernel
@pytest.mark.parametrize(("shape", "num_together"), [(SHAPES[1], 1), (SHAPES[2], 6), (SHAPES[2], 2)], ids=str)
def test_the_number_of_heads_at_once_does_not_change_a_bit(shape: AttentionShape, num_together: int) -> None:
    queries, seen = torch.randn(5, shape.num_heads, shape.head_size), seen_by_rows(30, 5, 33)
    tensors, others = stored(shape), kernel_of(replace(shape, num_together=num_together))

    outputs = attend(kernel_of(shape), queries, tensors, seen, 0.1)

    assert torch.equal(attend(others, queries, tensors, seen, 0.1), outputs)


@needs_kernel
@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("at_once", [1, 2, 3, 5])
@pytest.mark.fast("2-None", "3-9")
def test_chunks_and_rows_at_once_do_not_change_a_bit(
    monkeypatch: pytest.MonkeyPatch, at_once: int, window: int | None
) -> None:
    shape = SHAPES[1]
    queries, tensors = torch.randn(5, shape.num_heads, shape.head_size), stored(shape)
    seen = seen_by_rows(30, 5, window, [ROOT, 0, ROOT, 2, 3])
    outputs = attend(kernel_of(shape), queries, tensors, seen, 0.1)
    monkeypatch.setattr(module, "rows_at_once", lambda *_: at_once)

    assert torch.equal(attend(in_chunks(AttentionKernel(shape)), queries, tensors, seen, 0.1), outputs)


@needs_kernel
@pytest.mark.parametrize("head_size", range(16, 257, 16))
@pytest.mark.fast("16", "48", "80", "112", "128", "256")
def test_heads_of_all_sizes_attend_in_their_own_chunks(head_size: int) -> None:
    """Only 2 chunks of the longest are before the rows. A thread claims both rows: there is one task."""
    shape = AttentionShape(1, 1, head_size)
    kernel, first = AttentionKernel(shape), 2 * 128 + 5
    assert kernel._chunk >= TOGETHER
    assert kernel._chunk % TOGETHER == 0
    tensors = torch.randn(1, first + 2, head_size), torch.randn(1, first + 2, head_size)
    queries, scale = torch.randn(2, 1, head_size), head_size**-0.5

    with threads(1):
        outputs = attend(kernel, queries, tensors, seen_by_rows(first, 2, None), scale)

    sees = torch.ones(2, first + 2, dtype=torch.bool).tril(first)
    torch.testing.assert_close(outputs, expected(queries, *tensors, sees, scale), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("num_rows", "num_blocks", "num_threads", "expected"),
    [
        (1, 3, 2, 1),
        (4, 3, 2, 2),
        (8, 3, 2, 4),
        (8, 4, 2, 8),
        (5, 1, 2, 3),
        (16, 2, 1, 16),
        (3, 2, 16, 1),
        (17, 3, 2, 9),
    ],
)
def test_all_threads_have_rows_to_compute(num_rows: int, num_blocks: int, num_threads: int, expected: int) -> None:
    assert rows_at_once(num_rows, num_blocks, num_threads) == expected


@pytest.mark.parametrize(
    ("num_heads", "group", "head_size", "num_threads", "num_together"),
    [
        (9, 3, 64, 2, 3),
        (14, 7, 64, 2, 7),
        (14, 7, 64, 8, 1),
        (12, 6, 128, 2, 3),
        (12, 6, 128, 6, 2),
        (4, 4, 256, 16, 1),
    ],
)
def test_heads_are_computed_at_once_as_registers_and_threads_allow(
    monkeypatch: pytest.MonkeyPatch, num_heads: int, group: int, head_size: int, num_threads: int, num_together: int
) -> None:
    monkeypatch.setattr(module, "cpu_vectors", lambda: CpuVectors(64))

    with threads(num_threads):
        assert heads_together(num_heads, group, head_size) == num_together


@needs_kernel
@pytest.mark.parametrize("shape", [SHAPES[0], AttentionShape(7, 7, 80, num_together=7)], ids=str)
@pytest.mark.parametrize("num_seen", range(1, 10))
def test_what_a_row_does_not_see_changes_nothing(shape: AttentionShape, num_seen: int) -> None:
    """All positions that the row does not see hold NaN: even with a weight of 0, one would make the result NaN."""
    kernel, (keys, values) = kernel_of(shape), stored(shape)
    queries, start = torch.randn(1, shape.num_heads, shape.head_size), 20
    for tensor in (keys, values):
        tensor[:, :start] = tensor[:, start + num_seen :] = math.nan

    seen = seen_by_rows(start + num_seen - 1, 1, num_seen)
    # As next to rows that see more, whose other positions take more columns.
    seen = replace(seen, others=functional.pad(seen.others, (0, 3)))

    outputs = attend(kernel, queries, (keys, values), seen, 0.3)

    seen_here = [tensor[:, start : start + num_seen] for tensor in (keys, values)]
    all_seen = torch.ones(1, num_seen, dtype=torch.bool)
    torch.testing.assert_close(outputs, expected(queries, *seen_here, all_seen, 0.3), rtol=1e-5, atol=2e-6)


@needs_kernel
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0, 1e4])
def test_large_and_small_scores_keep_their_weights(size: float) -> None:
    shape = SHAPES[1]
    kernel, (keys, values) = kernel_of(shape), stored(shape)
    queries = size * torch.randn(2, shape.num_heads, shape.head_size)

    outputs = attend(kernel, queries, (keys, values), seen_by_rows(50, 2, None), 0.125)

    sees = torch.ones(2, 52, dtype=torch.bool).tril(50)
    # A score of 1e4 has a rounding error of 1e-3, and so has its weight.
    error = (outputs - expected(queries, keys, values, sees, 0.125)).norm() / outputs.norm()
    assert float(error) < 1e-6 * max(1.0, size)


@needs_kernel
def test_what_is_not_a_number_stays_in_its_row() -> None:
    shape = SHAPES[0]
    kernel, (keys, values) = kernel_of(shape), stored(shape)
    queries = torch.randn(3, shape.num_heads, shape.head_size)
    queries[1, 2, 5] = math.nan

    outputs = attend(kernel, queries, (keys, values), seen_by_rows(9, 3, None), 0.3)

    assert torch.isfinite(outputs[[0, 2]]).all()
    assert torch.isnan(outputs[1].view(shape.num_heads, -1)[2]).all()


@needs_kernel
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_the_number_of_threads_does_not_change_a_bit(num_threads: int) -> None:
    shape = SHAPES[2]
    kernel, (keys, values) = kernel_of(shape), stored(shape)
    queries, seen = torch.randn(5, shape.num_heads, shape.head_size), seen_by_rows(30, 5, None)
    outputs = attend(kernel, queries, (keys, values), seen, 0.1)

    with threads(num_threads):
        assert torch.equal(attend(kernel, queries, (keys, values), seen, 0.1), outputs)


@needs_kernel
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("udiv i64 %head, 2", "udiv i64 %head, 4"),
        ("%near_value_position = add i64 %start, %near_j", "%near_value_position = add i64 0, %near_j"),
        ("i64 0, i64 %far_key2_beyond", "i64 0, i64 0"),
        ("add i64 %start, %far_value0_at", "add i64 0, %far_value0_at"),
        ("fmul <16 x float> %far_more1_0, %shares1", "fmul <16 x float> %far_more1_0, %shares0"),
        ("fmul <4 x float> %far_dots0_4, %scales", "fmul <4 x float> %far_dots0_4, splat (float 1.0)"),
        ("store <16 x float> %weight, ptr", "store <16 x float> %score, ptr"),
        ("[ %in_order, %entry ], [ %far_j_next", "[ 0, %entry ], [ %far_j_next"),
        ("icmp ult i64 %near_i_next, %to", "icmp ult i64 %near_i_next, 0"),
        ("%near_j = phi i64 [ %from, %entry ]", "%near_j = phi i64 [ 0, %entry ]"),
        ("<16 x float> [ %before1_0, %entry ]", "<16 x float> [ zeroinitializer, %entry ]"),
        ("call i64 @llvm.umin.i64(i64 %add_chunk_end, i64 %add_in_order)", "add i64 %add_in_order, 0"),
        ("call i64 @llvm.umax.i64(i64 %most_so_far, i64 %most_in_order)", "add i64 %most_in_order, 0"),
        ("%end = add i64 %first, %rows_at_once", "%end = add i64 %first, 1"),
        ("store <16 x float> zeroinitializer, ptr %sums1_0", "store <16 x float> splat (float 1.0), ptr %sums1_0"),
        ("select i1 %far_value3_is_seen, float %far_weight0_3, float 0.0", "select i1 true, float 1.0, float 0.0"),
    ],
)
@pytest.mark.fast("udiv*", "store <16 x float> %weight*", "*%rows_at_once-*")
def test_a_planted_bug_is_noticed(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    shape = SHAPES[0]
    text = attention_code(shape)
    assert old in text
    monkeypatch.setattr(module, "attention_code", lambda _: text.replace(old, new))
    kernel, (keys, values) = in_chunks(AttentionKernel(shape)), stored(shape)
    queries, parents = torch.randn(4, shape.num_heads, shape.head_size), [ROOT, ROOT, 1, 2]

    def is_right(window: int) -> bool:
        outputs = attend(kernel, queries, (keys, values), seen_by_rows(20, 4, window, parents), 0.4)
        sees = tree_mask(parents, 4, (0, 20), window)
        return torch.allclose(outputs, expected(queries, keys, values, sees, 0.4), rtol=1e-3, atol=1e-3)

    assert not all(is_right(window) for window in (12, 14))


@pytest.mark.parametrize("shape", [AttentionShape(4, 2, 40), AttentionShape(4, 2, 512)], ids=str)
def test_heads_of_other_sizes_have_no_kernel(shape: AttentionShape) -> None:
    assert attention_kernel(shape) is None


def test_a_system_that_allows_no_new_code_has_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> NativeCode:
        raise RuntimeError("the system allows no new code in memory")

    monkeypatch.setattr(module, "NativeCode", fail)
    monkeypatch.setattr(module, "has_attention_kernel", lambda: True)

    assert attention_kernel(AttentionShape(6, 3, 48)) is None
    attention_kernel.cache_clear()


@needs_kernel
@pytest.mark.parametrize("rotary_size", [0, 32, 64])
@pytest.mark.parametrize("num_rows", [1, 5])
def test_new_rows_are_rotated_and_stored_as_torch_does_it_bit_for_bit(rotary_size: int, num_rows: int) -> None:
    shape = AttentionShape(6, 3, 64, rotary_size)
    kernel, (keys, values) = kernel_of(shape), stored(shape)
    before = keys.clone(), values.clone()
    # As the projections give them: side by side in each row.
    rows = torch.randn(num_rows, 6 + 2 + 2, 64)
    heads, new_values = rows[:, :8].clone(), rows[:, 8:]
    table = (torch.randn(num_rows, 1, rotary_size), torch.randn(num_rows, 1, rotary_size)) if rotary_size else None
    rotated = heads if table is None else rotate(heads, table)
    seen = seen_by_rows(20, num_rows, None)

    outputs = kernel.attend(NewRows(rows[:, :8], new_values, table, 20), (keys, values), seen, 0.2)

    for tensor, old, new in ((keys, before[0], rotated[:, 6:]), (values, before[1], new_values)):
        assert torch.equal(tensor[:, 20 : 20 + num_rows], new.transpose(0, 1))
        assert torch.equal(tensor[:, :20], old[:, :20])
        assert torch.equal(tensor[:, 20 + num_rows :], old[:, 20 + num_rows :])
    assert torch.equal(rows[:, :6], rotated[:, :6])
    sees = torch.ones(num_rows, 20 + num_rows, dtype=torch.bool).tril(20)
    torch.testing.assert_close(outputs, expected(rotated[:, :6], keys, values, sees, 0.2), rtol=1e-5, atol=2e-6)


@needs_kernel
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("fmul <16 x float> %x0, %sin32", "fmul <16 x float> %x32, %sin32"),
        ("fadd <16 x float> %kept16, %turned16", "fsub <16 x float> %kept16, %turned16"),
        ("%position = add i64 %first_row, %row", "%position = add i64 %first_row, 0"),
        ("%stored_offset = mul i64 %kv_head, %head_stride", "%stored_offset = mul i64 0, %head_stride"),
        ("%table_offset = mul i64 %row, 64", "%table_offset = mul i64 %row, 0"),
    ],
)
@pytest.mark.fast("%position*", "%table_offset*")
def test_a_planted_bug_of_storing_is_noticed(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    text = store_code(AttentionShape(6, 3, 64, 64), ARGUMENTS)
    assert old in text
    monkeypatch.setattr(module, "store_code", lambda *_: text.replace(old, new))
    attention_kernel.cache_clear()

    try:
        with pytest.raises(AssertionError):
            test_new_rows_are_rotated_and_stored_as_torch_does_it_bit_for_bit(64, 5)
    finally:
        attention_kernel.cache_clear()


@needs_kernel
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("positions", [[21], [20, 22, 31], [23, 24, 25, 60]])
def test_positions_move_to_the_front_in_all_layers(shape: AttentionShape, positions: list[int]) -> None:
    tensors = [tensor for _ in range(3) for tensor in stored(shape)]
    expected = [tensor.clone() for tensor in tensors]
    for tensor in expected:
        tensor[:, 20 : 20 + len(positions)] = tensor[:, positions]

    kernel_of(shape).move(tensors, positions, 20)

    assert all(map(torch.equal, tensors, expected))
