"""Weights quantized block by block equal those that bitsandbytes quantizes as a whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from specgen.models import quantized
from specgen.models.quantized import quantized_linear

bitsandbytes: Any = pytest.importorskip("bitsandbytes")


def library_layer(weight: Tensor, bias: Tensor | None, quant: str) -> Any:
    layers = bitsandbytes.nn
    num_outputs, num_inputs = weight.shape
    if quant == "int8":
        layer = layers.Linear8bitLt(num_inputs, num_outputs, bias is not None, has_fp16_weights=False, threshold=0.0)
        layer.weight = layers.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False)
    else:
        layer = layers.Linear4bit(num_inputs, num_outputs, bias is not None, weight.dtype, quant_type=quant)
        options: Any = {"quant_type": quant, "compress_statistics": False}
        layer.weight = layers.Params4bit(weight.clone(), requires_grad=False, **options)
    if bias is not None:
        layer.bias = torch.nn.Parameter(bias.clone(), requires_grad=False)
    return layer.to("cpu").eval()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("quant", ["int8", "nf4", "fp4"])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("shape", [(320, 128), (96, 64), (224, 192)])
def test_a_layer_quantized_in_blocks_equals_the_librarys(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, quant: str, has_bias: bool, shape: tuple[int, int]
) -> None:
    monkeypatch.setattr(quantized, "MAX_CONVERTED", 64 * 128)
    weight, inputs = torch.randn(shape).to(dtype), torch.randn(3, shape[1]).to(dtype)
    bias = torch.randn(shape[0]).to(dtype) if has_bias else None

    outputs = quantized_linear(weight, bias, quant)(inputs)

    assert torch.equal(outputs, library_layer(weight, bias, quant)(inputs))
