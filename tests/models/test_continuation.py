"""Models whose code can't verify drafts are refused at load, and no others."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from specgen.core.errors import LoadError
from specgen.core.settings import ModelSettings
from specgen.loading.weights import load_weights
from specgen.models.continuation import refuse_broken_continuation, relative_difference
from specgen.models.transformers_model import TransformersModel
from tests.architectures import BROKEN, build_folder
from tests.fakes import tiny_model
from tests.generate_oracle import differences, generated_ids
from tests.loading.builders import resolved

Forward = Callable[..., Any]


def changed(change: Callable[[Forward, dict[str, Any]], Any], dtype: torch.dtype = torch.float32) -> TransformersModel:
    """Returns a tiny Llama whose forward is changed in passes over several tokens after a cache."""
    base: Any = type(tiny_model())

    def forward(self: Any, input_ids: Any, position_ids: Any = None, **others: Any) -> Any:
        options = {"input_ids": input_ids, "position_ids": position_ids, **others}
        is_continued = input_ids.shape[1] > 1 and int(position_ids[0, 0]) > 0
        return (change if is_continued else intact)(partial(base.forward, self), options)

    forward.__signature__ = inspect.signature(base.forward)  # type: ignore[attr-defined]
    model = type(base.__name__, (base,), {"forward": forward})(tiny_model().config).eval()
    model.load_state_dict(tiny_model().state_dict())
    return TransformersModel(model.to(dtype), 96)


def intact(forward: Forward, options: dict[str, Any]) -> Any:
    return forward(**options)


def late_by_one(forward: Forward, options: dict[str, Any]) -> Any:
    return forward(**{**options, "position_ids": options["position_ids"] + 1 + torch.arange(3)})


def looking_ahead(forward: Forward, options: dict[str, Any]) -> Any:
    seen = torch.ones(1, 1, options["input_ids"].shape[1], int(options["position_ids"][0, -1]) + 1, dtype=torch.bool)
    return forward(**options, attention_mask=seen)


def failing(forward: Forward, options: dict[str, Any]) -> Any:
    raise ValueError("only one token after a cache")


def empty(forward: Forward, options: dict[str, Any]) -> Any:
    output = forward(**options)
    output.logits[:] = torch.nan
    return output


@pytest.mark.parametrize("change", [late_by_one, looking_ahead, failing])
def test_code_that_can_not_continue_from_a_cache_is_refused(change: Any) -> None:
    with pytest.raises(LoadError) as caught:
        refuse_broken_continuation(changed(change), "tiny")

    assert caught.value.exit_code == 3
    assert "LlamaForCausalLM" in caught.value.message


@pytest.mark.fault("F130")
@pytest.mark.parametrize("kind", ["Bert", "Roberta", "Electra"])
def test_an_encoder_that_reads_later_tokens_is_refused(kind: str) -> None:
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = getattr(transformers, f"{kind}Config")(
        **sizes, num_attention_heads=4, initializer_range=0.3, pad_token_id=0
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()

    with pytest.raises(LoadError):
        refuse_broken_continuation(TransformersModel(model, 96), "encoder")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_code_that_continues_is_let_in_with_an_empty_cache(dtype: torch.dtype) -> None:
    model = changed(intact, dtype)

    refuse_broken_continuation(model, "tiny")

    assert model.length == 0


def test_logits_that_are_no_numbers_are_left_to_generation() -> None:
    refuse_broken_continuation(changed(empty), "tiny")


def test_a_difference_is_a_share_of_the_spread() -> None:
    rows = torch.tensor([[0.0, 2.0], [0.0, 2.0]])

    assert relative_difference(rows, rows) == 0.0
    assert relative_difference(rows + 0.5, rows) == pytest.approx(0.5)
    assert relative_difference(10 * rows + 5.0, 10 * rows) == pytest.approx(0.5)


@pytest.mark.fault("F145")
@pytest.mark.parametrize("model_type", BROKEN)
@pytest.mark.fast(without=("prophetnet",))
def test_architectures_that_fail_after_a_cache_are_refused_when_they_are_loaded(
    model_type: str, tmp_path: Path
) -> None:
    build_folder(model_type, tmp_path)
    found = resolved(tmp_path, ModelSettings(str(tmp_path), dtype="float32", quant="none"))

    with pytest.raises(LoadError, match="not supported"):
        load_weights(found, found.config.vocab_rows or 0)


@pytest.mark.fault("F145")
def test_positions_count_from_zero_as_in_generate(tmp_path: Path) -> None:
    build_folder("roberta", tmp_path)
    found = resolved(tmp_path, ModelSettings(str(tmp_path), dtype="float32", quant="none"))
    model: Any = load_weights(found, found.config.vocab_rows or 0).model
    prompt = [5, 40, 9, 40, 9]

    expected = generated_ids(model.module, prompt, 12)

    assert differences(model, None, prompt, expected) == []
