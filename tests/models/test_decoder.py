"""The decoder: its logits equal transformers' bit for bit, after any sequence of passes and rewinds."""

from __future__ import annotations

import functools
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from specgen.core.errors import MemoryShortageError
from specgen.engine.drafters.base import NoDrafter
from specgen.engine.drafters.model import ModelDrafter
from specgen.models import decoder, layers
from specgen.models.decoder import DecoderModel, decoder_model
from specgen.models.linear import fused_matmul, has_nf4_kernel, matmul_of, nf4_copy
from specgen.models.transformers_model import CachedModel
from tests.fakes import TINY, ids_of, run_events, sampler, tiny_model

needs_kernel = pytest.mark.skipif(not has_nf4_kernel(torch.device("cpu")), reason="needs AVX512-BF16")
BUILDERS: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**TINY)),
    "llama-bias": lambda: LlamaForCausalLM(LlamaConfig(**TINY, attention_bias=True, mlp_bias=True)),
    "llama3-rope": lambda: LlamaForCausalLM(LlamaConfig(**TINY, rope_parameters=LLAMA3)),
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**TINY, tie_word_embeddings=True)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**TINY)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**TINY, head_dim=16)),
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def build(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    model = BUILDERS[kind]().to(dtype).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(parameter, 0.5, 0.5)
    return model.requires_grad_(False)


built = functools.cache(build)
"""For tests that build a model in each of many examples, and leave it as it is."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", list(BUILDERS))
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 14)), min_size=1, max_size=5), st.integers(0, 99))
def test_logits_equal_transformers_bit_for_bit(
    kind: str, dtype: torch.dtype, steps: list[tuple[int, int]], seed: int
) -> None:
    model = built(kind, dtype)
    plain, ours = CachedModel(model, 96), decoder_model(model, 96)
    assert isinstance(ours, DecoderModel)
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = [1]
    for num_fed, num_removed in steps:
        ids = [*ids, *torch.randint(0, 96, (num_fed,), generator=generator).tolist()]
        assert torch.equal(ours.logits(ids, num_fed), plain.logits(ids, num_fed))
        ids = ids[: max(1, len(ids) - num_removed)]
        for model_ in (ours, plain):
            model_.rewind(len(ids) - 1)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_cache_that_grows_keeps_its_entries(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "FIRST_CAPACITY", 8)
    model = build(kind)
    plain, ours = CachedModel(model, 96), decoder_model(model, 96)
    ids = torch.randint(0, 96, (70,), generator=torch.Generator().manual_seed(1)).tolist()

    for end in (3, 8, 9, 10, 40, 70):
        assert torch.equal(ours.logits(ids[:end], 1), plain.logits(ids[:end], 1))


class FullMemory(TorchFunctionMode):
    """Makes memory run out at operation `number`, counted from 0."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.num_left = number

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        self.num_left -= 1
        if self.num_left < 0:
            raise RuntimeError("DefaultCPUAllocator: not enough memory")
        return function(*arguments, **(options or {}))


@pytest.mark.fault("F40")
def test_running_out_of_memory_while_the_cache_grows_leaves_a_usable_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layers, "FIRST_CAPACITY", 8)
    model = build("llama")
    ids = torch.randint(0, 96, (70,), generator=torch.Generator().manual_seed(1)).tolist()
    plain, ours = CachedModel(model, 96), decoder_model(model, 96)
    grow, expected = layers.LayerStack._grow, [plain.logits(ids[:end], 1) for end in (20, 70)]
    num_failures = 0

    def fail(self: Any, length: int, capacity: int) -> None:
        with FullMemory(num_failures):
            grow(self, length, capacity)

    while True:
        ours.reset()
        ours.logits(ids[:3], 1)
        try:
            with monkeypatch.context() as patch:
                patch.setattr(layers.LayerStack, "_grow", fail)
                ours.logits(ids[:20], 1)
            break
        except MemoryShortageError:
            num_failures += 1
        assert (ours.length, ours._stack._keys) == (0, [])  # type: ignore[attr-defined]
        # In the same passes as the plain model, so equal bit for bit.
        logits = [ours.logits(ids[:end], 1) for end in (20, 70)]
        assert all(torch.equal(ours_, theirs) for ours_, theirs in zip(logits, expected, strict=True))

    assert num_failures > 2 * 2 * TINY["num_hidden_layers"], "keys and values of every layer, and the rotary embedding"


def test_layers_whose_cache_can_not_grow_keep_the_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "FIRST_CAPACITY", 8)
    model = build("llama")
    hidden = torch.randn(12, TINY["hidden_size"], generator=torch.Generator().manual_seed(1))
    num_failures = 0
    while True:
        ours, whole = decoder_model(model, 96)._stack, decoder_model(model, 96)._stack  # type: ignore[attr-defined]
        with torch.inference_mode():
            for stack in (ours, whole):
                stack.run(hidden[:8], 0)
            try:
                with FullMemory(num_failures):
                    ours._grow(8, 16)
                break
            except RuntimeError:
                num_failures += 1
            assert torch.equal(ours.run(hidden[7:8], 7), whole.run(hidden[7:8], 7)), "in the old cache"
            assert torch.equal(ours.run(hidden[8:], 8), whole.run(hidden[8:], 8)), "in the grown cache"

    assert num_failures > 2 * 2 * TINY["num_hidden_layers"]


@pytest.mark.fault("F40")
def test_a_draft_dropped_for_memory_has_freed_its_cache_before_the_step_is_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target, draft = decoder_model(build("llama"), 96), decoder_model(build("qwen2"), 96)
    assert isinstance(draft, DecoderModel)
    tensors: list[Any] = []
    run, calls = target._run, iter(range(10**6))

    def full(new: torch.Tensor, num_last: int) -> torch.Tensor:
        number = next(calls)
        if number == 2:
            tensors.extend(map(weakref.ref, (*draft._stack._keys, *draft._stack._values)))
            raise torch.OutOfMemoryError("CUDA out of memory")
        if number > 2:
            assert all(reference() is None for reference in tensors)
        return run(new, num_last)

    monkeypatch.setattr(target, "_run", full)
    events = run_events(target, ModelDrafter(draft, 96, sampler()), [1, 2, 3])

    assert len(tensors) == 2 * TINY["num_hidden_layers"]
    assert ids_of(events) == ids_of(run_events(decoder_model(build("llama"), 96), NoDrafter(), [1, 2, 3]))


def test_the_transformers_model_still_works() -> None:
    model = build("qwen2")
    ids = torch.tensor([[1, 2, 3, 4]])
    before = model(ids).logits

    decoder_model(model, 96)

    assert torch.equal(model(ids).logits, before)


def test_fused_layers_share_the_memory_of_their_product() -> None:
    model = build("qwen2")
    attention = model.model.layers[0].self_attn
    weights = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]

    fused_matmul([attention.q_proj, attention.k_proj, attention.v_proj])

    assert len({weight.untyped_storage().data_ptr() for weight in weights}) == 1


@pytest.mark.parametrize(
    ("config", "model_class"),
    [
        (LlamaConfig(**TINY, hidden_act="gelu"), LlamaForCausalLM),
        (
            LlamaConfig(**TINY, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
            LlamaForCausalLM,
        ),
        (LlamaConfig(**TINY, attn_implementation="eager"), LlamaForCausalLM),
    ],
)
def test_an_unsupported_model_is_run_by_transformers(config: Any, model_class: Any) -> None:
    assert type(decoder_model(model_class(config).eval(), 96)) is CachedModel


def test_a_sliding_window_is_run_by_transformers() -> None:
    assert type(decoder_model(tiny_model("mistral"), 96)) is CachedModel


def test_a_forward_that_computes_something_else_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later transformers may reorder its operations: then its own forward is used."""
    forward = LlamaRMSNorm.forward
    monkeypatch.setattr(LlamaRMSNorm, "forward", lambda self, hidden: forward(self, hidden) * (1 + 2**-20))

    assert type(decoder_model(build("llama"), 96)) is CachedModel


def test_the_check_restores_the_config() -> None:
    model = build("llama")
    model.config.num_hidden_layers = 2

    decoder_model(model, 96)

    assert model.config.num_hidden_layers == 2


def four_bit(num_inputs: int, num_outputs: int, *, bias: bool) -> Any:
    import bitsandbytes

    layers: Any = bitsandbytes.nn
    layer = layers.Linear4bit(
        num_inputs, num_outputs, bias=bias, compute_dtype=torch.bfloat16, quant_type="nf4", compress_statistics=False
    )
    torch.nn.init.normal_(layer.weight)
    return layer.to(torch.bfloat16).to("cpu").eval().requires_grad_(False)


@needs_kernel
@pytest.mark.parametrize("bias", [False, True])
def test_fused_4_bit_products_equal_the_layers_bit_for_bit(bias: bool) -> None:
    torch.manual_seed(0)
    layers = [four_bit(128, size, bias=bias) for size in (128, 64, 64)]
    inputs = torch.randn(5, 128, dtype=torch.bfloat16)
    expected = torch.cat([layer(inputs) for layer in layers], dim=-1)

    assert torch.equal(fused_matmul(layers)(inputs), expected)
    assert torch.equal(torch.cat([matmul_of(layer)(inputs) for layer in layers], dim=-1), expected)
    assert torch.equal(torch.cat([layer(inputs) for layer in layers], dim=-1), expected), "the layers work as before"


@needs_kernel
def test_a_4_bit_copy_is_close_to_its_original() -> None:
    torch.manual_seed(0)
    weight = torch.randn(256, 128, dtype=torch.bfloat16)
    inputs = torch.randn(3, 128, dtype=torch.bfloat16)

    copy, original = nf4_copy(weight)(inputs).float(), (inputs @ weight.T).float()

    assert 0.98 < float(torch.cosine_similarity(copy.flatten(), original.flatten(), dim=0)) < 0.9999


@needs_kernel
def test_a_4_bit_head_changes_the_logits_only_slightly(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not a test of speed.
    monkeypatch.setattr(decoder, "faster_of", lambda usual, other, row: other)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**TINY, "hidden_size": 64})).to(torch.bfloat16).eval()
    ours, packed = decoder_model(model, 96), decoder_model(model, 96)
    assert isinstance(packed, DecoderModel)

    packed.use_nf4_head()

    first, second = ours.logits([1, 2, 3], 3), packed.logits([1, 2, 3], 3)
    assert not torch.equal(first, second)
    assert float(torch.cosine_similarity(first.flatten(), second.flatten(), dim=0)) > 0.9
