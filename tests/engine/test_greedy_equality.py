"""Our decoder's greedy text equals that of transformers' `generate`, with any drafter, on real architectures.

Draft heads are in `tests/models/test_draft_head.py`.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch

from specgen.engine.drafters.base import Drafter, NoDrafter
from specgen.engine.drafters.combined import CombinedDrafter
from specgen.engine.drafters.lookup import LookupDrafter
from specgen.engine.drafters.model import ModelDrafter
from tests.fakes import always_wrong, cached, ids_of, oracle, random_tokens, run_events, sampler, tiny_model

KINDS = ["llama", "mistral"]
DRAFTERS = ["self", "other", "lookup", "combined", "random", "always-wrong", "oracle"]
DRAFTS = [("none", 0), *((name, num_draft_tokens) for name in DRAFTERS for num_draft_tokens in (1, 2, 3, 8))]
PROMPT = [1, 17, 40, 17, 40, 9, 88, 3]
NUM_TOKENS = 40  # with the prompt, three windows of the sliding-window model


@cache
def reference(kind: str) -> tuple[int, ...]:
    """transformers' own greedy generate, no cache tricks of ours."""
    model = tiny_model(kind)
    output = model.generate(
        torch.tensor([PROMPT]), do_sample=False, max_new_tokens=NUM_TOKENS, eos_token_id=None, pad_token_id=0
    )
    return tuple(output[0, len(PROMPT) :].tolist())


def make_drafter(name: str, kind: str) -> Drafter:
    if name == "none":
        return NoDrafter()
    if name == "lookup":
        return LookupDrafter()
    if name == "combined":
        return CombinedDrafter(LookupDrafter(), make_drafter("other", kind))
    if name in ("self", "other"):
        model = tiny_model(kind, seed=0 if name == "self" else 1)
        return ModelDrafter(cached(model), 96, sampler())
    if name == "random":
        return random_tokens(3, 96)
    make = {"oracle": lambda: oracle(reference(kind), len(PROMPT))}
    make["always-wrong"] = lambda: always_wrong(reference(kind), len(PROMPT), 96)
    return make[name]()


# Every length with Llama; with the sliding window the longest, which takes back the most. `tests/models/test_decoder`
# has the texts of all families.
@pytest.mark.parametrize(
    ("kind", "name", "num_draft_tokens"),
    [*(("llama", *draft) for draft in DRAFTS), *(("mistral", *draft) for draft in DRAFTS if draft[1] in (0, 8))],
)
@pytest.mark.fast("*-0", "*-1", "llama-other-3", "*-8", without=("*-other-[18]", "*-combined-8"))
def test_greedy_text_equals_transformers_generate(kind: str, name: str, num_draft_tokens: int) -> None:
    events = run_events(
        cached(tiny_model(kind)),
        make_drafter(name, kind),
        PROMPT,
        max_new_tokens=NUM_TOKENS,
        num_draft_tokens=num_draft_tokens,
    )

    assert tuple(ids_of(events)) == reference(kind)
