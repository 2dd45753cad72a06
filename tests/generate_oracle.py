"""Compares greedy texts with those of transformers' own `generate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from specgen.engine.drafters.base import NoDrafter
from specgen.engine.drafters.lookup import LookupDrafter
from specgen.engine.drafters.model import ModelDrafter
from specgen.models.cached_model import CachedModel
from tests.fakes import always_wrong, ids_of, run_events, sampler

NUM_DRAFTED = 4


@torch.inference_mode()
def generated_ids(model: Any, prompt: Sequence[int], num_new: int) -> list[int]:
    """Returns what `generate` adds to a prompt, greedily. Nothing ends the text early."""
    model.generation_config.eos_token_id = model.generation_config.forced_eos_token_id = None
    options = {"max_new_tokens": num_new, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    inputs = torch.tensor([list(prompt)])
    output = model.generate(inputs, attention_mask=torch.ones_like(inputs), use_cache=True, **options)
    return output[0, len(prompt) :].tolist()


def differences(
    target: CachedModel, draft: CachedModel | None, prompt: Sequence[int], expected: Sequence[int]
) -> list[str]:
    """Returns the drafters with which a target's greedy text differs from the expected one, and where it does."""
    drafters: dict[str, Callable[[], Any]] = {
        "none": NoDrafter,
        "lookup": LookupDrafter,
        "wrong": lambda: always_wrong(expected, len(prompt), target.vocab_size),
    }
    if draft is not None:
        drafters["model"] = lambda: ModelDrafter(draft, target.vocab_size, sampler())
    found = []
    for name, drafter in drafters.items():
        target.reset()
        k = 0 if name == "none" else NUM_DRAFTED
        events = run_events(target, drafter(), prompt, max_new_tokens=len(expected), num_draft_tokens=k)
        text = ids_of(events)
        if text != list(expected):
            at = next(i for i, (a, b) in enumerate(zip(text, expected, strict=True)) if a != b)
            found.append(f"{name}: token {at} is {text[at]}, not {expected[at]}")
    return found
