"""Models whose rejected tokens can't be removed are refused, with the kind of their layers and what to use instead."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from specgen.core.errors import LoadError
from specgen.models.hybrid_support import INSTEAD, RESTARTED_TYPES
from specgen.models.transformers_model import TransformersModel
from tests.architectures import REFUSED, empty_model
from tests.hybrids import LIMITED, RESTARTING, hybrid_model
from tests.models.hybrid_checks import PROMPT


@pytest.mark.parametrize("model_type", REFUSED)
@pytest.mark.fast("xlnet", "jamba", "minimax", "mamba", "rwkv", "lfm3", "xlstm")
def test_a_refusal_names_the_kind_of_the_layers_and_what_to_use_instead(model_type: str) -> None:
    model = empty_model(model_type)

    with pytest.raises(LoadError) as caught:
        TransformersModel(model, 320)

    assert type(model).__name__ in caught.value.message
    assert f" {REFUSED[model_type]}," in caught.value.message
    assert caught.value.hint == INSTEAD


@pytest.mark.parametrize("kind", [*LIMITED, *RESTARTING])
def test_the_reason_of_a_refusal_still_holds(kind: str) -> None:
    model = hybrid_model(kind)
    assert (model.config.model_type in RESTARTED_TYPES) == (kind in RESTARTING)
    for module in model.modules():
        if kind in LIMITED and hasattr(module, "dt_bias"):
            module.dt_bias.data.fill_(-9.0)  # steps of about 1e-4, below the limit of 1e-3

    # Once this fails, the architecture can be let in.
    num_tokens, difference = (1, 1e-4) if kind in LIMITED else (4, 0.1)
    assert float((last_logits(model, num_tokens) - last_logits(model, len(PROMPT))).abs().max()) > difference


def last_logits(model: Any, num_tokens: int) -> Tensor:
    """Returns the logits after the prompt, of passes over this many tokens with a cache."""
    cache: Any = transformers.DynamicCache(config=model.config)
    with torch.inference_mode():
        for ids in torch.tensor([PROMPT]).split(num_tokens, dim=1):
            logits: Tensor = model(ids, cache=cache, use_cache=True).logits[0, -1]
    return logits
