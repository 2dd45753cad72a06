"""Part 4: passes of whole models, launched one by one and recorded: kernels, time of a token, v(n), cost of a draft."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import torch

from specgen.models.cached_model import CachedModel
from specgen.models.decoder import Decoder
from specgen.models.static.model import StaticModel
from tests.gpu.isolation import described
from tests.gpu.models import (
    Quant,
    Shape,
    bytes_per_token,
    config_of,
    eager_model,
    failure_of,
    random_decoder,
    spec_of,
    static_model,
    transformers_model,
    whole_model,
    with_nf4_head,
)
from tests.gpu.report import Context
from tests.gpu.timing import Timer, num_kernels

ROWS = (1, 2, 3, 4, 5, 6, 8, 12, 16)
LENGTH = 256
"""Tokens in the cache, unless a figure says another number."""


def measure(context: Context) -> None:
    """Part 4."""
    plans: tuple[tuple[Shape, Quant], ...] = (("7B", "nf4"), ("0.5B", "nf4"), ("0.5B", "none"), ("7B", "none"))
    for shape, quant in plans:
        decoder = random_decoder(spec_of(shape, is_tiny=context.is_tiny), context.device, quant=quant)
        if (shape, quant) == ("0.5B", "nf4"):
            decoder = with_nf4_head(decoder)
        _measure_decoder(context, decoder, shape, quant)
        if quant == "none":
            whole = whole_model(transformers_model(config_of(shape, is_tiny=context.is_tiny), decoder))
            _measure_rows(context, whole, (1, 5), {"model": shape, "quant": quant, "runner": "whole"})
        del decoder


def _measure_decoder(context: Context, decoder: Decoder, shape: Shape, quant: Quant) -> None:
    fields: dict[str, str] = {"model": shape, "quant": quant}
    context.say("bytes", **fields, gb=bytes_per_token(decoder) / 1e9)
    for runner, model in (("eager", eager_model(decoder)), ("static", static_model(decoder))):
        _measure_rows(context, model, _rows(shape, runner), {**fields, "runner": runner})
        try:
            kernels = _kernels_of_token(context, model) / len(decoder.layers)
            context.say("kernels", **fields, runner=runner, per_layer=kernels)
        except (RuntimeError, AttributeError) as error:
            context.say("kernels", **fields, runner=runner, error=described(error))
        if isinstance(model, StaticModel):
            _measure_lengths(context, model, fields)
            if shape == "0.5B":
                context.say("draft_step", **fields, ms=draft_step_ms(Timer(context.device, context.pick(20, 2)), model))
            if (failure := failure_of(model)) is not None:
                context.say("recording_failed", **fields, error=failure)


def _kernels_of_token(context: Context, model: CachedModel) -> int:
    """Counts the kernels of a pass over one token; `_measure_rows` has recorded it before."""
    ids = random_ids(model, LENGTH + 1)
    model.rewind(0)
    model.feed(ids[:LENGTH])
    return num_kernels(context.device, lambda: model.logits(ids, 1))


def _rows(shape: Shape, runner: str) -> Sequence[int]:
    """Returns which passes are timed. Those that are launched one by one take the same time for all."""
    if shape != "7B":
        return (1, 2)
    return ROWS if runner == "static" else (1, 5, 8)


def _measure_rows(context: Context, model: CachedModel, rows: Sequence[int], fields: dict[str, str]) -> None:
    timer = Timer(context.device, context.pick(20, 2))
    for num_rows in rows:
        call_ms, stream_ms = pass_ms(timer, model, LENGTH, num_rows)
        context.say("pass", **fields, rows=num_rows, ms=stream_ms, call_ms=call_ms)


def _measure_lengths(context: Context, model: StaticModel, fields: dict[str, str]) -> None:
    timer = Timer(context.device, context.pick(20, 2))
    for length in context.pick((1000, 4000), (600,)):
        for rows in (1, 5):
            _, stream_ms = pass_ms(timer, model, length, rows)
            context.say("long_pass", **fields, runner="static", kv=length, rows=rows, ms=stream_ms)


def random_ids(model: CachedModel, num_tokens: int) -> list[int]:
    """Returns the same ids every time."""
    ids: list[int] = torch.randint(
        0, model.vocab_size, (num_tokens,), generator=torch.Generator().manual_seed(0)
    ).tolist()
    return ids


def pass_ms(timer: Timer, model: CachedModel, length: int, rows: int) -> tuple[float, float]:
    """Times passes over `rows` tokens after a text: with a wait after each, and without."""
    ids = random_ids(model, length + rows)
    model.rewind(0)
    model.feed(ids[:length])

    def run() -> None:
        model.logits(ids, rows)
        model.rewind(length)

    stream_ms = timer.stream_ms(run)
    return timer.call_ms(run), stream_ms


def draft_step_ms(timer: Timer, model: StaticModel) -> float:
    """Times a token of a draft that feeds itself on the device."""
    ids = random_ids(model, LENGTH)
    model.rewind(0)
    model.feed(ids[:-1])
    indices = count()

    def run() -> None:
        index = next(indices) % 8
        if not index:
            model.rewind(LENGTH - 1)
        model.draft_token(ids, index)

    return timer.stream_ms(run)


def verify_ms(timer: Timer, model: StaticModel, num_draft_tokens: int) -> float:
    """Times the verification of a greedy draft without its host read: what the device needs for it."""
    ids = random_ids(model, LENGTH)
    model.rewind(0)
    model.feed(ids[:-1])
    draft = torch.zeros(num_draft_tokens, dtype=torch.int64, device=model.device)

    def run() -> None:
        assert model.verify_greedy(ids, draft) is not None, "the draft is short enough to be recorded"
        model.rewind(LENGTH - 1)

    return timer.stream_ms(run)
