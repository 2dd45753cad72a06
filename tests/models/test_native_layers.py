"""All layers of a short pass in one call give, bit for bit, what they give one by one."""

from __future__ import annotations

import copy
import gc
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from specgen.loading.decoder_weights import dense_linear
from specgen.models import kv_slots, native_layers
from specgen.models import step_kernels as module
from specgen.models.cpu_vectors import cpu_vectors
from specgen.models.decoder_model import DecoderModel
from specgen.models.draft_head_layers import DecoderLayers
from specgen.models.float_linear import BFloat16Linear
from specgen.models.formats import Int8Linear, Nf4Linear
from specgen.models.fused_layers import fuse, last_norm
from specgen.models.kv_slots import SliceSlots
from specgen.models.native_code import NativeCode
from specgen.models.native_layers import NativeLayers, NativePass
from specgen.models.native_steps import MAX_ROWS
from specgen.models.packing import PackedKind, packed_linear
from specgen.models.pass_threads import PassThreads
from specgen.models.prologue_code import PROLOGUES
from specgen.models.step_code import step_code
from specgen.models.step_kernels import NativeNorm, compiled_steps, step_kernels
from specgen.models.stored_slots import Rotations
from tests.decoders import decoder_of
from tests.fakes import threads
from tests.models.test_decoder import FAMILIES, build

pytestmark = pytest.mark.skipif(cpu_vectors() is None, reason="needs AVX2")
KINDS: list[PackedKind] = [Int8Linear, Nf4Linear, BFloat16Linear]
ONE_BY_ONE = ("gemma2", "phi3-window")
"""Families whose layers run one by one: the kernel caps no scores, and rotates whole vectors of channels only."""
IDS = [5 + 3 * index % 80 for index in range(80)]


def model_of(family: str, kind: PackedKind = Nf4Linear) -> DecoderModel:
    def linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
        return packed_linear(weight, kind, bias)

    sizes = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2}
    heads = {"head_dim": 32} if family in ("qwen3", "gemma2", "gemma3") else {}
    decoder = decoder_of(build(family, **sizes, **heads), linear)
    for layer in decoder.layers:
        fuse(layer)
    return DecoderModel(decoder, 96, attends_by_row=True)


@contextmanager
def one_by_one() -> Iterator[None]:
    """Runs layers one by one."""
    with patch.object(NativeLayers, "_fits", return_value=False):
        yield


@contextmanager
def noted(number: Callable[[Tensor], int] = len) -> Iterator[list[int]]:
    """Notes the rows, or another number, of passes whose layers ran in one call."""
    found: list[int] = []
    run = NativePass.run

    def note(self: NativePass, hidden: Tensor, rotations: Rotations, slots: SliceSlots) -> Tensor:
        found.append(number(hidden))
        return run(self, hidden, rotations, slots)

    with patch.object(NativePass, "run", note):
        yield found


def passes(model: DecoderModel) -> list[Tensor]:
    """Returns the logits of passes of all kinds: windows are crossed, positions taken back, a tree grows in two."""
    found = []
    model.feed(IDS[:30])
    for num_rows in (1, 2, 5, MAX_ROWS, MAX_ROWS + 1, 3, 1):
        model.rewind(30)
        found.append(model.logits(IDS[: 30 + num_rows], num_rows))
    model.rewind(30)
    found.append(model.tree_logits(torch.tensor(IDS[40:43]), [-1, -1, 0]))
    found.append(model.tree_logits(torch.tensor(IDS[50:52]), [2, 1]))
    model.keep_rows([1, 4])
    found.append(model.logits([*IDS[:30], IDS[41], IDS[51], *IDS[60:63]], 3))
    return found


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert [torch.equal(one, other) for one, other in zip(found, expected, strict=True)] == [True] * len(expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.fast("llama-bias", "linear-rope", "mistral-window", "gemma3", "qwen3")
def test_passes_of_all_families_are_those_of_layers_one_by_one(family: str) -> None:
    model = model_of(family)
    with one_by_one():
        expected = passes(copy.deepcopy(model))

    with noted() as rows:
        found = passes(model)

    assert_same(found, expected)
    assert rows == ([] if family in ONE_BY_ONE else [1, 2, 5, MAX_ROWS, 3, 1, 3, 2, 3])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.fast("BFloat16Linear", "Nf4Linear")
def test_passes_in_all_formats_are_those_of_layers_one_by_one(kind: PackedKind) -> None:
    model = model_of("llama-bias", kind)
    with one_by_one():
        expected = passes(copy.deepcopy(model))

    with noted() as rows:
        assert_same(passes(model), expected)

    assert rows


def test_a_larger_cache_and_another_number_of_threads_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_slots, "FIRST_CAPACITY", 32)
    model, num_threads = model_of("qwen2"), torch.get_num_threads()
    with one_by_one():
        expected = passes(copy.deepcopy(model))
    passes(model)

    try:
        torch.set_num_threads(num_threads + 1)
        model.reset()
        assert_same(passes(model), expected)
    finally:
        torch.set_num_threads(num_threads)
    model.reset()
    assert_same(passes(model), expected)


def test_passes_that_lack_cores_have_the_same_bits_on_fewer_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count()
    # No pass has any processor time, and all take as long.
    monkeypatch.setattr(native_layers, "PassThreads", lambda: PassThreads(lambda: next(clock), lambda: 0.0))
    model = model_of("llama-bias")
    with one_by_one():
        expected = passes(copy.deepcopy(model))

    with threads(2), noted(lambda _: torch.get_num_threads()) as numbers:
        found = passes(model)

    assert_same(found, expected)
    assert numbers == [2, 2, 2, 1, 1, 1, 2, 2, 2]


@torch.inference_mode()
def test_outputs_stay_as_they_are_when_another_pass_runs() -> None:
    model = model_of("llama")
    with one_by_one():
        expected = copy.deepcopy(model).logits(IDS[:4], 4)
    model.feed(IDS[:4])
    (layers,), (slots,) = model._layers, model._slots
    hidden = model.decoder.embed(torch.tensor(IDS[:4]))

    first = layers.run(hidden, slots.begin(0, 4), slots)
    layers.run(torch.randn_like(hidden), slots.begin(4, 4), slots)

    assert torch.equal(model.decoder.logits(model._norm(first)), expected)


@torch.inference_mode()
def test_the_layers_of_a_draft_head_run_so_too() -> None:
    decoder = model_of("qwen3").decoder
    inputs = decoder.embed(torch.tensor(IDS))
    ours, others = (DecoderLayers(decoder.spec, decoder.layers, decoder.embedding.new_empty(0)) for _ in range(2))

    def outputs(layers: DecoderLayers) -> list[Tensor]:
        rows = [layers.run(inputs[:30], 0), layers.run(inputs[30:31], 30)]
        return [*rows, layers.run_rows(inputs[31:34], 31, [-1, -1, 0]), layers.run(inputs[31:33], 31)]

    with one_by_one():
        expected = outputs(others)
    with noted() as rows:
        assert_same(outputs(ours), expected)

    assert rows == [1, 3, 2]


def test_a_copy_reads_its_own_weights() -> None:
    model = model_of("llama")
    expected = passes(model)
    other = copy.deepcopy(model)
    for layer in model.decoder.layers:
        layer.attention.qkv_proj.native_weight._values.zero_()  # type: ignore[union-attr]
    other.reset()

    assert_same(passes(other), expected)


def test_one_layer_with_another_product_lets_all_run_one_by_one() -> None:
    decoder = decoder_of(build("llama", hidden_size=128, intermediate_size=192), nf4_but_once())
    for layer in decoder.layers:
        fuse(layer)

    with noted() as rows:
        DecoderModel(decoder, 96, attends_by_row=True).logits(IDS[:5], 5)

    assert not rows


def nf4_but_once() -> Callable[[Tensor, Tensor | None], nn.Module]:
    made = 0

    def linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
        nonlocal made
        made += 1
        return dense_linear(weight, bias) if made == 6 else packed_linear(weight, Nf4Linear, bias)

    return linear


def test_a_machine_without_the_code_runs_layers_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = passes(model_of("llama"))

    def fail(_: str) -> None:
        raise RuntimeError("the system allows no new code in memory")

    monkeypatch.setattr(module, "NativeCode", fail)
    compiled_steps.cache_clear()
    try:
        with noted() as rows:
            found = passes(model_of("llama"))
    finally:
        compiled_steps.cache_clear()

    assert not rows
    # The last norm is torch's. Rounding to 8 bits amplifies its last bit to a step.
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0.02 * float(other.abs().max()))


@torch.inference_mode()
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_last_norm_is_that_of_torch(family: str) -> None:
    decoder = model_of(family).decoder
    rows = torch.randn(19, 128) * torch.logspace(-4, 3, 19)[:, None]
    norm = last_norm(decoder.norm, decoder.layers)

    found = norm(rows)

    assert isinstance(norm, NativeNorm)
    torch.testing.assert_close(found, decoder.norm(rows), rtol=1e-5, atol=1e-6)
    assert torch.equal(torch.cat([norm(row[None]) for row in rows]), found)


@pytest.mark.parametrize(
    ("family", "old", "new"),
    [
        ("granite", "fadd <16 x float> %x, %scaled", "fadd <16 x float> %x, %y"),
        ("qwen3", "%row_offset = mul i64 %row, %row_stride", "%row_offset = mul i64 %row, %size"),
        ("qwen3", "icmp ult i64 %index_next, %num_norms", "icmp ult i64 %index_next, 1"),
        (
            "qwen3",
            "icmp ult i64 %row_next, %num_rows\n  br i1 %rows_more",
            "icmp ult i64 %row_next, 1\n  br i1 %rows_more",
        ),
    ],
)
@pytest.mark.fast("granite*")
def test_a_planted_bug_is_noticed(monkeypatch: pytest.MonkeyPatch, family: str, old: str, new: str) -> None:
    text = step_code(PROLOGUES)
    assert old in text
    monkeypatch.setattr(module, "step_code", lambda _: text.replace(old, new))
    compiled_steps.cache_clear()
    try:
        with pytest.raises(AssertionError):
            test_passes_of_all_families_are_those_of_layers_one_by_one(family)
    finally:
        compiled_steps.cache_clear()


def test_threads_that_load_layers_at_once_compile_the_code_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []

    def compile_slowly(text: str) -> NativeCode:
        compiled.append(text)
        time.sleep(0.05)
        return NativeCode(text)

    monkeypatch.setattr(module, "NativeCode", compile_slowly)
    compiled_steps.cache_clear()
    try:
        with ThreadPoolExecutor(4) as pool:
            found = set(map(id, pool.map(lambda _: step_kernels(), range(4))))
    finally:
        compiled_steps.cache_clear()

    assert (len(found), len(compiled)) == (1, 1)


def test_the_code_lives_as_long_as_a_pass_that_runs_it() -> None:
    """Else the steps would jump to memory that was freed."""
    compiled_steps.cache_clear()
    model = model_of("qwen3")
    expected = passes(model)
    kernels = step_kernels()
    assert kernels is not None
    code = weakref.ref(kernels.code)
    del kernels

    compiled_steps.cache_clear()
    gc.collect()

    # `NativeNorm` compiles it again; the passes keep theirs.
    assert code() is not None
    model.rewind(0)
    assert_same(passes(model), expected)
