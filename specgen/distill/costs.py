"""What a pass of the target and a token of a draft cost on this machine, in the type the target is stored in."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch.nn import functional

from specgen.distill.acceptance import MAX_DRAFT, Costs
from specgen.distill.draft import Draft
from specgen.engine.lean import lean_model

NUM_CONTEXT = 128
REPEATS = 9


def time_costs(model: Any, draft: Draft, num_draft_ids: int, dtype: str) -> Costs:
    """Time passes over 1 to `MAX_DRAFT` + 1 tokens behind a short context, and one drafted token; medians.

    The draft's time is its part of the target's work: layers at the price of the target's own, its head by its rows.

    Args:
        model: The target; its weights are rounded to `dtype` and stay so.
        draft: The draft.
        num_draft_ids: Rows of its head.
        dtype: `float32`, `bfloat16` or `float16`.
    """
    model.to(getattr(torch, dtype))
    owner = lean_model(model, int(model.config.vocab_size))
    context = [token % owner.num_embeddings for token in range(1, NUM_CONTEXT + 1)]
    owner.feed(context)
    head = model.get_output_embeddings().weight

    def seconds(num_tokens: int) -> float:
        def one_pass() -> None:
            owner.logits([*context, *range(1, num_tokens + 1)], num_tokens)
            owner.rewind(NUM_CONTEXT)

        return _median(one_pass)

    passes = tuple(seconds(num_tokens) for num_tokens in range(1, MAX_DRAFT + 2))
    row = torch.zeros(1, head.shape[1], dtype=head.dtype, device=head.device)
    full_head = _median(lambda: functional.linear(row, head))
    part_head = _median(lambda: functional.linear(row, head[:num_draft_ids]))
    layers = max(0.0, passes[0] - full_head) / int(model.config.num_hidden_layers) * len(draft.target_layers)
    fc = 0.0
    if draft.fc is not None:
        weight = draft.fc.weight.detach().to(head.dtype)
        double = torch.zeros(1, weight.shape[1], dtype=head.dtype, device=head.device)
        fc = _median(lambda: functional.linear(double, weight))
    return Costs(layers + part_head + fc, passes)


@torch.inference_mode()
def _median(work: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS + 2):
        started = perf_counter()
        work()
        times.append(perf_counter() - started)
    return statistics.median(times[2:])
