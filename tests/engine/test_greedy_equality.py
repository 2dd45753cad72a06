"""Our decoder's greedy text equals that of transformers' `generate`, with any drafter, on real architectures."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from specgen.engine.drafters.base import Drafter, NoDrafter
from specgen.engine.drafters.combined import CombinedDrafter
from specgen.engine.drafters.lookup import LookupDrafter
from specgen.engine.drafters.model import ModelDrafter
from specgen.models.decoder_model import DecoderModel
from tests.draft_heads import SHAPES, head_drafter, tiny_draft
from tests.fakes import (
    GREEDY,
    always_wrong,
    cached,
    ids_of,
    oracle,
    random_tokens,
    run_events,
    sampler,
    tiny_model,
)

KINDS = ["llama", "qwen2", "mistral"]
DRAFTERS = ["none", "self", "other", "lookup", "combined", "random", "always-wrong", "oracle"]
PROMPT = [1, 17, 40, 17, 40, 9, 88, 3]
NUM_TOKENS = 48  # three windows of the sliding-window model


@cache
def reference(kind: str) -> tuple[int, ...]:
    """transformers' own greedy generate, no cache tricks of ours."""
    model = tiny_model(kind)
    output = model.generate(
        torch.tensor([PROMPT]), do_sample=False, max_new_tokens=NUM_TOKENS, eos_token_id=None, pad_token_id=0
    )
    return tuple(output[0, len(PROMPT) :].tolist())


def make_drafter(name: str, kind: str, target: DecoderModel) -> Drafter:
    if name in SHAPES:
        return head_drafter(tiny_draft(name, tiny_model(kind), f"tiny-{kind}"), target, GREEDY)
    if name == "none":
        return NoDrafter()
    if name == "lookup":
        return LookupDrafter()
    if name == "combined":
        return CombinedDrafter(LookupDrafter(), make_drafter("other", kind, target))
    if name in ("self", "other"):
        model = tiny_model(kind, seed=0 if name == "self" else 1)
        return ModelDrafter(cached(model), 96, sampler())
    if name == "random":
        return random_tokens(3, 96)
    make = {"oracle": lambda: oracle(reference(kind), len(PROMPT))}
    make["always-wrong"] = lambda: always_wrong(reference(kind), len(PROMPT), 96)
    return make[name]()


CASES = [(kind, name) for kind in KINDS for name in DRAFTERS]
# A draft with a sliding window is refused: its folder can't be made from the third kind.
CASES += [(kind, name) for kind in KINDS[:2] for name in SHAPES]


@pytest.mark.parametrize("num_draft_tokens", range(1, 9))
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_greedy_text_equals_transformers_generate(kind: str, name: str, num_draft_tokens: int) -> None:
    target = cached(tiny_model(kind))
    events = run_events(
        target,
        make_drafter(name, kind, target),
        PROMPT,
        max_new_tokens=NUM_TOKENS,
        num_draft_tokens=num_draft_tokens,
    )

    assert tuple(ids_of(events)) == reference(kind)
