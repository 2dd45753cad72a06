"""Part 3: products of one to sixteen rows under a graph, in all formats, with weights that no cache holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from specgen.models.quantized import nf4_linear
from tests.gpu.isolation import described
from tests.gpu.models import STD, Shape, random_normal, spec_of
from tests.gpu.report import Context
from tests.gpu.timing import Timer

ROWS = (1, 2, 3, 4, 5, 6, 8, 12, 16)
BYTES = 2**28
"""Of the weights that one recording reads: several times the largest L2 cache."""
MAX_COPIES = 256

Product = Callable[[Tensor], Any]
"""Rows `[n, inputs]` to `[n, outputs]`."""


def shapes_of(shape: Shape, *, is_tiny: bool) -> dict[str, tuple[int, int]]:
    """Returns outputs and inputs of the products of a model, as specgen joins them; of 7B the single ones, too."""
    spec = spec_of(shape, is_tiny=is_tiny)
    heads, kv_heads = spec.num_heads * spec.head_size, spec.num_kv_heads * spec.head_size
    found = {
        "qkv": (heads + 2 * kv_heads, spec.hidden_size),
        "o": (spec.hidden_size, heads),
        "gate_up": (2 * spec.intermediate_size, spec.hidden_size),
        "down": (spec.hidden_size, spec.intermediate_size),
    }
    if shape == "7B":
        found |= {"k": (kv_heads, spec.hidden_size), "gate": (spec.intermediate_size, spec.hidden_size)}
    return found


@torch.inference_mode()
def measure(context: Context) -> None:
    """Part 3. In the order of what decides most, because the deadline may end it."""
    timer = Timer(context.device, context.pick(15, 2))
    makers = {"bf16": _dense, "nf4": _nf4}
    if context.device.type == "cuda":
        makers |= {"nf4_kernel": _nf4_kernel, "int4": _int4, "fp8": _fp8}
    models: tuple[Shape, ...] = ("7B", "0.5B", "8B")
    for model in models:
        for name, (num_outputs, num_inputs) in shapes_of(model, is_tiny=context.is_tiny).items():
            for kind, make in makers.items():
                fields = {"model": model, "product": name, "kind": kind}
                try:
                    rows = (1, 2) if model == "0.5B" else ROWS
                    context.say("product_us", **fields, **_times(context, timer, make, (num_outputs, num_inputs), rows))
                except (RuntimeError, TypeError, ImportError, AttributeError, ValueError) as error:
                    context.say("product_us", **fields, error=described(error))


def _times(
    context: Context, timer: Timer, make: Callable[[Tensor], Product], shape: tuple[int, int], rows: tuple[int, ...]
) -> dict[str, float]:
    """Returns microseconds of one product by the number of its rows."""
    num_outputs, num_inputs = shape
    # Four-bit weights need the most copies; the larger ones are beyond the cache with as many.
    num_copies = context.pick(min(MAX_COPIES, max(2, 2 * BYTES // (num_outputs * num_inputs))), 2)
    products = [make(random_normal(shape, context.device).mul_(STD)) for _ in range(num_copies)]
    found = {}
    for count in rows:
        inputs = random_normal((count, num_inputs), context.device)

        def run(inputs: Tensor = inputs) -> None:
            for product in products:
                product(inputs)

        found[f"n{count}"] = 1000 * timer.replay_ms(run) / num_copies
    return found


def _dense(weight: Tensor) -> Product:
    return lambda inputs: functional.linear(inputs, weight)


def _nf4(weight: Tensor) -> Product:
    """As specgen loads it."""
    return nf4_linear(weight, None)


def _nf4_kernel(weight: Tensor) -> Product:
    """The fused kernel for any number of rows: bitsandbytes unpacks the weights for many rows."""
    from bitsandbytes.backends.cuda import ops
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(weight, blocksize=64, quant_type="nf4")
    kernel: Any = ops._gemm_4bit_kernel_impl
    shape = list(weight.shape)
    return lambda inputs: kernel(inputs, packed, shape, state.absmax, 64, "nf4")


def _int4(weight: Tensor) -> Product:
    """torch's tinygemm: uniform 4 bits, groups of 128, tiles of 16 rows."""
    num_outputs, num_inputs = weight.shape
    codes = (weight[:, ::2] / STD * 64).to(torch.int32).bitwise_and(255).to(torch.uint8)
    tiles = torch.ops.aten._convert_weight_to_int4pack(codes, 8)
    scales = random_normal((num_inputs // 128, num_outputs, 2), weight.device)
    return lambda inputs: torch.ops.aten._weight_int4pack_mm(inputs, tiles, 128, scales)


def _fp8(weight: Tensor) -> Product:
    """8 bits with a scale per row of the weight and of the inputs, padded to 16 rows; rounding them is not timed."""
    packed = (weight / STD).to(torch.float8_e4m3fn)
    scales = torch.ones(1, weight.shape[0], device=weight.device)
    rounded: dict[int, tuple[Tensor, Tensor]] = {}

    def run(inputs: Tensor) -> Tensor:
        if inputs.shape[0] not in rounded:
            padded = functional.pad(inputs, (0, 0, 0, -inputs.shape[0] % 16)).to(torch.float8_e4m3fn)
            rounded[inputs.shape[0]] = padded, torch.ones(padded.shape[0], 1, device=inputs.device)
        rows, row_scales = rounded[inputs.shape[0]]
        return torch._scaled_mm(rows, packed.t(), scale_a=row_scales, scale_b=scales, out_dtype=torch.bfloat16)

    return run
