"""Recorded passes of transformers' own code: models with windows too, whose text and logits are those without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from specgen.engine.drafters.model import ModelDrafter
from specgen.models.cuda import recorded
from specgen.models.static import inputs, whole_pass
from specgen.models.static.admission import PROBED_WINDOW
from specgen.models.static.model import StaticModel
from specgen.models.static.whole_pass import WholePass, windows_by_kind
from specgen.models.transformers_model import TransformersModel
from tests.fakes import TINY, assert_close, oracle, sampler, tiny_model
from tests.models.static.builders import distance_in, whole_model
from tests.models.static.recorder import TraceRecorder
from tests.models.static.test_static_model import NUM_TOKENS, PROMPT, model_of, poison, shared_draft, text
from tests.models.test_decoder import WINDOW
from tests.profiles import num_examples, thorough_except

MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
OTHERS: dict[str, dict[str, Any]] = {
    "Cohere2": {"num_hidden_layers": 4},
    "GptOss": {"head_dim": 16, **MOE},
    "Mixtral": MOE,
    "Starcoder2": {},
    "Olmo3": {"num_hidden_layers": 4},
    "Exaone4": {"num_hidden_layers": 4, "sliding_window_pattern": 2},
}
"""Classes that specgen's decoder does not run."""
CLASSES = ("llama", "yarn-rope", "mistral-window", "qwen2-window", "qwen3", "gemma2", "gemma3", "phi3-window", "olmo2")
CLASSES += ("smollm3", "granite")
"""Families of which a recorded pass knows a class, and what it does with its cache: not its biases or tied weights."""


@cache
def windowed(name: str) -> Any:
    """A random model with windows of `WINDOW` tokens."""
    if name not in OTHERS:
        return model_of(name)
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**TINY, "sliding_window": WINDOW, **OTHERS[name]})
    return transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def generated(model: Any) -> tuple[int, ...]:
    limits = {"max_new_tokens": NUM_TOKENS, "eos_token_id": None, "pad_token_id": 0}
    output = model.generate(torch.tensor([PROMPT]), do_sample=False, **limits)
    return tuple(output[0, len(PROMPT) :].tolist())


@pytest.mark.parametrize("name", thorough_except(["qwen2-window", "GptOss"], [*CLASSES, *OTHERS]))
@pytest.mark.fast("qwen2-window")
def test_greedy_text_equals_transformers(name: str) -> None:
    """The text is several windows long; drafts are right, wrong, and cross the edge of a window."""
    model = windowed(name)
    target, expected = whole_model(model), generated(model)

    assert tuple(text(target, ModelDrafter(shared_draft(), 96, sampler()))) == expected
    assert tuple(text(target, oracle(expected, len(PROMPT)), 7)) == expected
    assert len(target.replays.recorded_keys) >= 2


@given(st.lists(st.tuples(st.integers(1, 24), st.integers(0, 40)), min_size=1, max_size=6), st.integers(0, 99))
@settings(max_examples=num_examples(12))
def test_logits_after_any_rewind_are_those_without_a_cache(steps: list[tuple[int, int]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = shared_whole()
    model.rewind(0)
    ids = [1]
    for num_fed, num_removed in steps:
        ids = [*ids, *torch.randint(0, 96, (num_fed,), generator=generator).tolist()]
        poison(model)
        assert_close(model.logits(ids, 1), logits_without_cache(ids, 1))
        ids = ids[: max(1, len(ids) - num_removed)]
        model.rewind(len(ids) - 1)


@cache
def shared_whole() -> StaticModel:
    return whole_model(windowed("qwen2-window"))


@torch.inference_mode()
def logits_without_cache(ids: list[int], num_last: int) -> torch.Tensor:
    logits: torch.Tensor = windowed("qwen2-window")(torch.tensor([ids])).logits[0, -num_last:]
    return logits


@pytest.mark.parametrize("num_new", [1, 5])
def test_what_has_left_a_window_changes_no_logits(num_new: int) -> None:
    """All but the layers without a window must not see it. Each pass is run, recorded and replayed."""
    ids, model = list(range(30 + 3 * num_new)), shared_whole()
    model.rewind(0)  # it may hold the text of another test
    for last in range(30 + num_new, len(ids) + 1, num_new):
        model.feed(ids[: last - num_new])
        num_left = model.length - WINDOW + 1
        with poisoned_windows(model, num_left):
            found = model.logits(ids[:last], num_new).clone()
        assert_close(found, logits_without_cache(ids[:last], num_new))


@contextmanager
def poisoned_windows(model: StaticModel, length: int) -> Iterator[None]:
    """Fills the first positions of the layers with a window, for a while."""
    static_pass: Any = model.static_pass
    kinds = static_pass.model.config.layer_types
    pairs = zip(kinds, static_pass._cache.layers, strict=True)
    layers = [layer for kind, layer in pairs if static_pass._windows[kind] is not None]
    tensors = [tensor[:, :, :length] for layer in layers for tensor in (layer.keys, layer.values)]
    before = [tensor.clone() for tensor in tensors]
    assert tensors
    with torch.inference_mode():
        for tensor in tensors:
            tensor.fill_(1e4)
        yield
        for tensor, values in zip(tensors, before, strict=True):
            tensor.copy_(values)


def test_text_through_growth_keeps_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "FIRST_BUCKET", 16)
    model = windowed("qwen2-window")
    target, expected = whole_model(model), generated(model)

    assert tuple(text(target, oracle(expected, len(PROMPT)))) == expected
    assert target.capacity >= 64


# admission


@pytest.mark.parametrize("name", thorough_except(["qwen2-window"], ["qwen2-window", "gemma3", "Mixtral"]))
@pytest.mark.thorough
def test_windows_longer_than_the_probe_are_compared_and_left_as_they_are(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = windowed(name), set()
    original = WholePass._mask

    def noting(self: WholePass, positions: torch.Tensor, window: int | None) -> torch.Tensor:
        seen.add(window)
        return original(self, positions, window)

    monkeypatch.setattr(WholePass, "_mask", noting)
    found = recorded(TransformersModel(model, 96), TraceRecorder())

    assert (type(found.model), found.reason) == (StaticModel, None)
    assert PROBED_WINDOW in seen
    assert WINDOW not in seen
    assert model.config.sliding_window == WINDOW
    assert tuple(text(found.model, oracle(generated(model), len(PROMPT)))) == generated(model)  # type: ignore[arg-type]
    assert WINDOW in seen


def forgotten(window: int | None) -> int | None:
    return None


def one_too_long(window: int | None) -> int | None:
    return None if window is None else window + 1


def in_all_layers(window: int | None) -> int:
    return window or PROBED_WINDOW


@pytest.mark.parametrize("bug", [forgotten, one_too_long, in_all_layers])
def test_a_wrong_window_is_not_admitted(
    bug: Callable[[int | None], int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = WholePass._mask
    monkeypatch.setattr(WholePass, "_mask", lambda self, positions, window: original(self, positions, bug(window)))
    plain = TransformersModel(windowed("qwen2-window"), 96)

    found = recorded(plain, TraceRecorder())

    assert found.model is plain
    assert distance_in(found.reason) is not None
    assert windowed("qwen2-window").config.sliding_window == WINDOW
    assert plain._window == WINDOW


def test_masks_of_another_shape_keep_the_plain_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a class that does not take one mask per kind of layer."""
    monkeypatch.setattr(WholePass, "_masks", lambda self, positions: {"unknown": self._mask(positions, None)})
    plain = TransformersModel(windowed("qwen2-window"), 96)

    found = recorded(plain, TraceRecorder())

    assert found.model is plain
    assert found.reason
    assert distance_in(found.reason) is None, "nothing was compared"


def test_windows_that_cannot_be_shortened_keep_the_plain_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_pass, "windows_by_kind", lambda config: {"": 4096})
    plain = TransformersModel(windowed("mistral-window"), 96)

    found = recorded(plain, TraceRecorder())

    assert found.model is plain
    assert "windows" in str(found.reason)
    assert distance_in(found.reason) is None


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Llama4Text", {"attention_chunk_size": WINDOW, "num_local_experts": 2}),
        ("Mamba2", {"num_heads": 4, "head_dim": 16}),
    ],
)
def test_other_caches_are_not_recorded(name: str, options: dict[str, Any]) -> None:
    config = getattr(transformers, f"{name}Config")(**{**TINY, **options})

    assert windows_by_kind(config) is None


def test_padding_past_a_learned_embedding_changes_nothing() -> None:
    config = transformers.GPT2Config(vocab_size=96, n_positions=24, n_embd=32, n_layer=2, n_head=4, bos_token_id=1)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    static, plain = whole_model(model), TransformersModel(model, 96)
    ids = list(range(1, 25))
    static.feed(ids[:17])

    assert_close(static.logits(ids, 7), plain.logits(ids, 7))


def test_features_of_transformers_passes_are_the_inputs_of_its_head() -> None:
    model = tiny_model("llama")
    static = whole_model(model)
    features = static.record_target_features()
    ids, tails = [1, 17, 40, 17, 40, 9, 88, 3], ([5, 7], [60, 61], [4, 2], [8, 9])

    static.feed(ids[:-1])
    for tail in tails:  # the later passes are replayed
        static.logits(ids, 3, torch.tensor(tail))
        ids += [tail[0], 33]
        static.rewind(len(ids) - 1)
        with torch.inference_mode():
            expected = model.model(torch.tensor([ids])).last_hidden_state[0, : features.end]
        assert features.end == len(ids) - 1
        assert_close(features.rows(0, features.end), expected)
