"""Both models with a cache: after any sequence of passes and rewinds, the logits equal those of a fresh prefill."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from specgen.core.errors import MemoryShortageError
from specgen.engine.memory_errors import memory_errors
from specgen.models.cached_model import CachedModel
from specgen.models.transformers_model import TransformersModel
from tests.fakes import TINY, assert_close, cached, tiny_model
from tests.generate_oracle import differences, generated_ids
from tests.profiles import share_of_profile, thorough_except

KINDS = ["llama", "qwen2", "mistral"]
on_both = pytest.mark.parametrize("name", ["decoder", "transformers"])


def make(name: str, kind: str = "llama", vocab_size: int = 96) -> CachedModel:
    """Returns our decoder, or transformers' code, on the same weights."""
    model = tiny_model(kind)
    return cached(model, vocab_size) if name == "decoder" else TransformersModel(model, vocab_size)


def fresh_logits(kind: str, ids: list[int]) -> torch.Tensor:
    """Returns the logits of transformers' code, without a cache."""
    with torch.inference_mode():
        return tiny_model(kind)(torch.tensor([ids])).logits[0, -1:].float()


def check_rollback(name: str, kind: str, steps: list[tuple[int, int]], seed: int) -> None:
    """Feeds and rewinds at random; after each step the next logits must equal those of a fresh prefill."""
    generator = torch.Generator().manual_seed(seed)
    model = make(name, kind)
    ids: list[int] = [1]
    for num_fed, num_removed in steps:
        ids = [*ids, *torch.randint(0, 96, (num_fed,), generator=generator).tolist()]
        model.logits(ids, 1)
        ids = ids[: max(1, len(ids) - num_removed)]
        model.rewind(len(ids) - 1)
        assert_close(model.logits(ids, 1), fresh_logits(kind, ids))
        model.rewind(len(ids) - 1)


@on_both
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=share_of_profile(1 / 4))
@given(st.lists(st.tuples(st.integers(1, 24), st.integers(0, 30)), min_size=1, max_size=6), st.integers(0, 99))
@pytest.mark.fast(without=("qwen2-*",))
def test_logits_after_rewinds_equal_a_fresh_prefill(
    name: str, kind: str, steps: list[tuple[int, int]], seed: int
) -> None:
    check_rollback(name, kind, steps, seed)


@on_both
@pytest.mark.parametrize("kind", KINDS)
def test_a_tail_gives_the_same_logits_as_the_whole_text(name: str, kind: str) -> None:
    ids, tail = [1, 5, 9], [7, 3, 3]
    whole = make(name, kind).logits(ids + tail, 4)

    model = make(name, kind)
    first = model.logits(ids, 1, tail=torch.tensor([], dtype=torch.int64))
    second = model.logits(ids, 1, tail=torch.tensor(tail[:1]))
    rest = model.logits(ids, 2, tail=torch.tensor(tail))

    assert_close(torch.cat([first, second, rest]), whole)


@on_both
@pytest.mark.parametrize("kind", KINDS)
def test_later_draft_tokens_do_not_change_earlier_logits(name: str, kind: str) -> None:
    first = make(name, kind).logits([1, 2, 3, 4, 5], 3)
    second = make(name, kind).logits([1, 2, 3, 90, 80], 3)

    assert torch.equal(first[0], second[0])


@on_both
@pytest.mark.parametrize("kind", KINDS)
def test_a_long_prompt_is_fed_in_chunks_with_the_same_result(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.randint(0, 96, (60,), generator=torch.Generator().manual_seed(0)).tolist()
    whole = make(name, kind).logits(ids, 2)
    monkeypatch.setattr("specgen.models.cached_model.PREFILL_CHUNK", 16)

    model = make(name, kind)
    chunked = model.logits(ids, 2)

    assert model.num_forwards == 4
    assert_close(chunked, whole)


@on_both
@pytest.mark.fault("F29")
def test_logits_are_cut_to_the_shared_vocabulary(name: str) -> None:
    assert make(name, vocab_size=60).logits([1, 2], 1).shape == (1, 60)


@on_both
def test_an_empty_cache_can_be_rewound(name: str) -> None:
    model = make(name, "mistral")

    model.rewind(0)

    assert model.length == 0


@on_both
def test_a_failing_forward_empties_the_cache(name: str) -> None:
    model = make(name)
    model.logits([1, 2, 3], 1)

    with pytest.raises(IndexError):
        model.logits([1, 2, 3, 4, 9999], 1)

    assert model.length == 0
    assert_close(model.logits([1, 2, 3], 1), fresh_logits("llama", [1, 2, 3]))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] data. DefaultCPUAllocator: not enough memory: you tried to ..."),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_running_out_of_memory_is_recognized(error: Exception) -> None:
    with pytest.raises(MemoryShortageError), memory_errors():
        raise error


class UnconvertibleLogits:
    """Logits whose conversion to float32 runs out of memory."""

    def __getitem__(self, _: object) -> UnconvertibleLogits:
        return self

    def float(self) -> None:
        raise RuntimeError("DefaultCPUAllocator: not enough memory")


@on_both
def test_running_out_of_memory_for_float32_logits_empties_the_cache(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(name)
    model.feed([1, 2])
    with monkeypatch.context() as patch:
        patch.setattr(model, "_run", lambda *_: UnconvertibleLogits())
        with pytest.raises(MemoryShortageError):
            model.logits([1, 2, 3], 1)

    assert model.length == 0
    assert_close(model.logits([1, 2, 3], 1), fresh_logits("llama", [1, 2, 3]))


def test_other_runtime_errors_pass_through() -> None:
    with pytest.raises(RuntimeError, match="shape"), memory_errors():
        raise RuntimeError("shape mismatch")


SWITCH = 24
"""Length above which the model of `longrope_model` takes other rotary frequencies."""


def longrope_model(kind: str = "phi3") -> Any:
    torch.manual_seed(3)
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, **factors, "original_max_position_embeddings": SWITCH}
    if kind == "phimoe":
        rope |= {"short_mscale": 1.0, "long_mscale": 1.2}
    config = transformers.AutoConfig.for_model(
        kind, **{**TINY, "hidden_size": 32}, original_max_position_embeddings=SWITCH, rope_parameters=rope
    )
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.fault("F140")
@pytest.mark.parametrize(
    ("kind", "num_prompt"),
    thorough_except(
        [("phi3", number) for number in (8, SWITCH - 1, SWITCH + 1)],
        [
            *(("phi3", number) for number in (8, SWITCH - 1, SWITCH, SWITCH + 1, 60)),
            *(("phimoe", number) for number in (8, SWITCH + 1)),
        ],
    ),
)
@pytest.mark.fast("phi3-25")
def test_a_text_around_the_switch_of_longrope_is_generate_s(
    kind: str, num_prompt: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specgen.models.cached_model.PREFILL_CHUNK", 16)
    model = longrope_model(kind)
    prompt = torch.randint(3, 96, (num_prompt,), generator=torch.Generator().manual_seed(5)).tolist()
    # From any of the prompts, 24 tokens lead past the switch.
    expected = generated_ids(model, prompt, 24)

    draft = TransformersModel(tiny_model(), 96)

    assert differences(TransformersModel(model, 96), draft, prompt, expected) == []


@pytest.mark.fault("F140")
def test_rows_on_both_sides_of_the_switch_are_those_of_their_own_texts() -> None:
    model = longrope_model()
    ids = torch.randint(3, 96, (SWITCH + 6,), generator=torch.Generator().manual_seed(5)).tolist()
    target = TransformersModel(model, 96)
    target.feed(ids[: SWITCH - 4])

    rows = target.logits(ids[: SWITCH - 2], 9, tail=torch.tensor(ids[SWITCH - 2 :]))
    target.rewind(SWITCH - 3)
    again = target.logits(ids[: SWITCH - 2], 1)

    for index, row in enumerate(rows):
        with torch.inference_mode():
            whole = model(torch.tensor([ids[: SWITCH - 2 + index]])).logits[0, -1:]
        assert_close(row[None], whole)
        assert index or torch.allclose(again, whole, atol=1e-3)


def dynamic_model(kind: str) -> Any:
    """Returns a model whose frequencies change with each token above `SWITCH` tokens."""
    torch.manual_seed(3)
    rope: dict[str, Any] = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    sizes = {**TINY, "hidden_size": 32, "head_dim": 8, "max_position_embeddings": SWITCH}
    if kind == "gemma3_text":
        sizes["sliding_window"] = 12
        rope = {"full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    config = transformers.AutoConfig.for_model(kind, **sizes, rope_parameters=rope)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.fault("F170")
@pytest.mark.parametrize("kind", ["llama", pytest.param("gemma3_text", marks=pytest.mark.thorough)])
@pytest.mark.thorough
def test_a_text_beyond_the_window_of_dynamic_scaling_is_generate_s(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specgen.models.cached_model.PREFILL_CHUNK", 16)
    target, draft = TransformersModel(dynamic_model(kind), 96), TransformersModel(dynamic_model("llama"), 96)
    generator = torch.Generator().manual_seed(5)

    for num_prompt in (60, 8, SWITCH - 1, SWITCH, 40, SWITCH + 1):
        prompt = torch.randint(3, 96, (num_prompt,), generator=generator).tolist()
        # A model of its own: `generate` keeps the frequencies of an earlier, longer text.
        expected = generated_ids(dynamic_model(kind), prompt, 24)

        assert differences(target, draft, prompt, expected) == []


@pytest.mark.fault("F170")
def test_rows_beyond_the_window_of_dynamic_scaling_do_not_depend_on_the_pass() -> None:
    ids = torch.randint(3, 96, (SWITCH + 9,), generator=torch.Generator().manual_seed(5)).tolist()
    target = TransformersModel(dynamic_model("llama"), 96)
    target.feed(ids[: SWITCH - 4])

    rows = target.logits(ids[: SWITCH - 2], 9, tail=torch.tensor(ids[SWITCH - 2 :]))
    target.rewind(SWITCH + 2)
    again = target.logits(ids[: SWITCH + 4], 2)

    assert_close(again, rows[2:4])


@pytest.mark.fault("F170")
def test_a_longer_prompt_is_read_again_with_its_own_frequencies() -> None:
    ids = torch.randint(3, 96, (50,), generator=torch.Generator().manual_seed(5)).tolist()
    target = TransformersModel(dynamic_model("llama"), 96)

    for num_prompt in (30, 31, 50):
        target.rewind(max(0, target.length - 2))
        target.feed(ids[: num_prompt - 1])
        with torch.inference_mode():
            whole = dynamic_model("llama")(torch.tensor([ids[:num_prompt]])).logits[0, -1:]

        assert_close(target.logits(ids[:num_prompt], 1), whole)


def knowing_only(argument: str) -> Any:
    """Returns a tiny Llama whose forward knows its cache by one name and ignores any other without a word."""
    base: Any = type(tiny_model())
    own = "cache" if "cache" in inspect.signature(base.forward).parameters else "past_key_values"

    def forward(self: Any, input_ids: Any, *, use_cache: bool = True, **others: Any) -> Any:
        return base.forward(self, input_ids, use_cache=use_cache, **{own: others.get(argument)})

    known = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in (argument, "use_cache")]
    first = inspect.Parameter("input_ids", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    forward.__signature__ = inspect.Signature([first, *known])  # type: ignore[attr-defined]
    model = type(base.__name__, (base,), {"forward": forward})(tiny_model().config).eval()
    model.load_state_dict(tiny_model().state_dict())
    return model


@pytest.mark.fault("F148")
@pytest.mark.parametrize("argument", ["cache", "past_key_values"])
def test_the_cache_is_passed_by_the_name_in_the_signature(argument: str) -> None:
    model = TransformersModel(knowing_only(argument), 96)

    model.logits([1, 2, 3], 1)

    assert_close(model.logits([1, 2, 3, 4, 5], 2)[1:], fresh_logits("llama", [1, 2, 3, 4, 5]))
