"""Part 2: what a key length never seen before costs in transformers' attention, and which kernel is fast on ours."""

from __future__ import annotations

import inspect
import statistics
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tests.gpu.isolation import described
from tests.gpu.models import config_of, random_decoder, random_normal, spec_of, transformers_model
from tests.gpu.report import Context
from tests.gpu.timing import Timer

FIRST_LENGTHS = {(True, 1): 300, (True, 5): 400, (False, 1): 700, (False, 5): 800}
"""By cuDNN and rows: no two series meet a length twice, because a plan is kept once it is built."""


@torch.inference_mode()
def measure(context: Context) -> None:
    """Part 2."""
    device = context.device
    decoder = random_decoder(spec_of("1.5B", is_tiny=context.is_tiny), device)
    model = transformers_model(config_of("1.5B", is_tiny=context.is_tiny), decoder)
    try:
        for is_on in (True, False):
            if device.type == "cuda":
                torch.backends.cuda.enable_cudnn_sdp(is_on)
            for rows in (1, 5):
                times = _growing_passes(context, model, rows, FIRST_LENGTHS[is_on, rows])
                middle = statistics.median(times[1:])
                context.say(
                    "growing", cudnn=is_on, rows=rows, first_ms=times[0], median_ms=middle, largest_ms=max(times[1:])
                )
    finally:
        if device.type == "cuda":
            torch.backends.cuda.enable_cudnn_sdp(False)
    _compare_kernels(context)


def _growing_passes(context: Context, model: Any, rows: int, first: int) -> list[float]:
    """Returns the milliseconds of passes over a cache that grows."""
    from transformers import DynamicCache

    device, timer = context.device, Timer(context.device, 1)
    cache: Any = DynamicCache(config=model.config)
    ids = torch.randint(0, 500, (1, first), device=device)
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    options = {name: cache, "use_cache": True}
    model(input_ids=ids, **options)
    times = []
    for _ in range(context.pick(30, 3)):
        timer.wait()
        started = perf_counter()
        model(input_ids=ids[:, :rows], **options)
        timer.wait()
        times.append(1000 * (perf_counter() - started))
    return times


def _compare_kernels(context: Context) -> None:
    """Times one layer's attention of 7B: heads as rows (ours), and FlashAttention over the used part."""
    device, timer = context.device, Timer(context.device, context.pick(30, 2))
    heads, kv_heads, size = context.pick((28, 4, 128), (4, 2, 16))
    for length in context.pick((256, 1024, 4096), (64,)):
        bucket = max(512, 1 << (length - 1).bit_length())
        keys, values = (random_normal((kv_heads, bucket, size), device) for _ in range(2))
        for rows in (1, 5):
            queries = random_normal((rows, heads, size), device)
            kernels: dict[str, Callable[[], Any]] = {"folded": partial(_folded, queries, keys, values)}
            if device.type == "cuda":
                kernels["varlen"] = _varlen(queries, keys, values, length)
            for name, run in kernels.items():
                try:
                    context.say("kernel", kernel=name, kv=length, rows=rows, us=1000 * timer.replay_ms(run))
                except (RuntimeError, TypeError, ImportError) as error:
                    context.say("kernel", kernel=name, kv=length, rows=rows, error=described(error))


def _folded(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of `TensorSlots`: the heads of a group are rows of one head, with an additive bias."""
    rows, _, size = queries.shape
    kv_heads, bucket, _ = keys.shape
    folded = queries.view(rows, kv_heads, -1, size).permute(1, 2, 0, 3).reshape(1, kv_heads, -1, size)
    bias = queries.new_zeros(folded.shape[2], bucket)
    return functional.scaled_dot_product_attention(folded, keys[None], values[None], attn_mask=bias)


def _varlen(queries: Tensor, keys: Tensor, values: Tensor, length: int) -> Callable[[], Any]:
    """Returns a call of FlashAttention, which reads from the device how much of the cache is used."""
    rows, bucket, device = queries.shape[0], keys.shape[1], queries.device
    # Copies from the host can't be recorded, so they are made before.
    rows_end = torch.tensor([0, rows], dtype=torch.int32, device=device)
    keys_end = torch.tensor([0, bucket], dtype=torch.int32, device=device)
    used = torch.full((1,), length, dtype=torch.int32, device=device)

    def call() -> Any:
        from torch.nn.attention.varlen import varlen_attn

        laid = (queries, keys.transpose(0, 1), values.transpose(0, 1), rows_end, keys_end, rows, bucket)
        return varlen_attn(*laid, window_size=(-1, 0), enable_gqa=True, seqused_k=used)

    return call
