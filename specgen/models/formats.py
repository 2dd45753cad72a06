"""Linear layers with packed weights, smaller than the float32 they compute in: for CPUs.

On a CPU without bfloat16 instructions, a product of a few rows in bfloat16 costs a full pass per row, and one in
float32 reads twice the bytes and takes three times as long at three rows as at one. torch's FBGEMM kernels read float16
weights and compute in float32: measured on two Zen 3 cores, 8960 x 1536, one row 0.89 ms (bfloat16 1.55, float32 3.08),
six rows 1.17 ms (8.0, 10.6). So checking a draft of five tokens costs 1.3 single passes, and plain decoding is faster
too. With int8 weights and inputs the bytes are halved again, on any CPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from specgen.models.native_weight import NO_PROLOGUE, NativeWeight, Prologue
from specgen.models.weight_memory import empty

MAX_FLOAT16 = 65504.0
TINY = float(torch.finfo(torch.float32).tiny)
MAX_PACKED = 2**24
"""Weights that are packed at once: only the heads of large vocabularies, and layers of large models, have more."""


@lru_cache(maxsize=1)
def has_float16_matmul() -> bool:
    """Returns whether this torch and this CPU run `Float16Linear`."""
    return _works(Float16Linear)


@lru_cache(maxsize=1)
def has_int8_matmul() -> bool:
    """Returns whether this torch and this CPU run `Int8Linear`. torch has announced to remove its quantized tensors."""
    return _works(Int8Linear)


def _works(kind: type[Float16Linear] | type[Int8Linear]) -> bool:
    try:
        with without_deprecation_warning():
            kind(torch.zeros(16, 16), None)(torch.zeros(1, 16))
    except (RuntimeError, NotImplementedError, AttributeError):
        return False
    return True


@contextmanager
def without_deprecation_warning() -> Iterator[None]:
    """Hides torch's warning that quantized tensors will be removed; `has_int8_matmul` detects the removal."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.quantize_per_tensor")
        yield


class PackedLinear(nn.Module):
    """Base of the linear layers whose weights are packed for a kernel: they are no parameters.

    A large weight is packed in blocks of rows, because the kernels' functions need a float32 copy of what they pack.

    Args:
        weight: `[outputs, inputs]`, of any float type.
        bias: float32 `[outputs]`.
    """

    has_exact_rows = False
    """Whether a row's outputs are the same, bit for bit, for any number of rows."""
    _value_bytes: int
    _row_bytes: int

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.num_bytes = self._value_bytes * weight.numel() + self._row_bytes * weight.shape[0]
        num_rows = max(MAX_PACKED // self.in_features, 1)
        self._blocks = []
        for first in range(0, self.out_features, num_rows):
            rows = slice(first, first + num_rows)
            self._blocks.append(self._pack(weight[rows], None if bias is None else bias[rows]))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = [self._multiply(inputs, block) for block in self._blocks]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)

    def unpacked(self) -> Tensor:
        """Returns a new copy of the weight, float32 `[outputs, inputs]`."""
        raise NotImplementedError

    def _pack(self, weight: Tensor, bias: Tensor | None) -> Any:
        raise NotImplementedError

    def _multiply(self, inputs: Tensor, block: Any) -> Tensor:
        raise NotImplementedError


class Float16Linear(PackedLinear):
    """A linear layer with float16 weights; inputs, sums and outputs are float32. No weight may be out of its range."""

    _value_bytes, _row_bytes = 2, 0

    def unpacked(self) -> Tensor:
        """As in `PackedLinear`."""
        return torch.cat([torch.ops.quantized.linear_unpack_fp16(block)[0].float() for block in self._blocks])

    def _pack(self, weight: Tensor, bias: Tensor | None) -> Any:
        return torch.ops.quantized.linear_prepack_fp16(_wide(weight), bias)

    def _multiply(self, inputs: Tensor, block: Any) -> Tensor:
        outputs: Tensor = torch.ops.quantized.linear_dynamic_fp16(inputs, block)
        return outputs


class Int8Linear(PackedLinear):
    """A linear layer with int8 weights and one scale per output; inputs are rounded to 8 bits at run time.

    Batch invariant: each row is divided by its own largest value, and the product is computed with a fixed scale of
    its inputs. FBGEMM's dynamic product instead chooses one scale for all rows, so that a row's result depends on the
    other rows. The bias is added after a row has its scale again.
    """

    has_exact_rows = True
    _value_bytes, _row_bytes = 1, 4

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, None)
        self._bias = bias
        self._levels = 127 if keeps_all_bits() else 63

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.reshape(-1, self.in_features)
        # `vector_norm(inf)` gives the same and takes ten times as long.
        scales = rows.abs().amax(dim=-1, keepdim=True).clamp_min_(TINY)
        outputs = super().forward(rows / scales).mul_(scales)
        if self._bias is not None:
            outputs += self._bias
        return outputs.view(*inputs.shape[:-1], self.out_features)

    def unpacked(self) -> Tensor:
        """As in `PackedLinear`."""
        return torch.cat([torch.ops.quantized.linear_unpack(block)[0].dequantize() for block in self._blocks])

    def _pack(self, weight: Tensor, bias: Tensor | None) -> Any:
        return torch.ops.quantized.linear_prepack(_rounded(_wide(weight)), bias)

    def _multiply(self, inputs: Tensor, block: Any) -> Tensor:
        return _int8_product(inputs, self._levels, block)


def _wide(weight: Tensor) -> Tensor:
    return empty(weight.shape, torch.float32, weight.device).copy_(weight)


def _rounded(weight: Tensor) -> Tensor:
    """Returns a float32 weight in int8, with a scale for each row."""
    low, high = torch.aminmax(weight, dim=1)
    scales = torch.maximum(high, -low).clamp_min(TINY) / 127
    zeros = torch.zeros(weight.shape[0], dtype=torch.int64)
    return torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)


def _int8_product(inputs: Tensor, levels: int, block: Any) -> Tensor:
    """Multiplies inputs between -1 and 1, rounded to `2 * levels + 1` values, by a packed weight."""
    outputs: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
        inputs, 1 / levels, levels + 1, block
    )
    return outputs


@lru_cache(maxsize=1)
def keeps_all_bits() -> bool:
    """Returns whether int8 products may use all 8 bits of their inputs.

    CPUs without VNNI add two products in 16 bits, which overflow at the largest values. So this computes the largest.
    """
    with without_deprecation_warning():
        weight = torch.quantize_per_tensor(torch.ones(16, 64), 1 / 127, 0, torch.qint8)
        packed = torch.ops.quantized.linear_prepack(weight, None)
    product = _int8_product(torch.ones(1, 64), 127, packed)
    return bool((product - 64).abs().max() < 0.01)


class NativeLinear(PackedLinear):
    """Base of the linear layers on our own kernels.

    Batch invariant: all sums are integers, or added up in an order of the row's own.
    """

    has_exact_rows = True

    def __init__(self, weight: NativeWeight) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.num_bytes = weight.num_bytes
        self.native_weight = weight

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns outputs in the type of the inputs."""
        return self.after(NO_PROLOGUE, inputs)

    def after(self, prologue: Prologue, inputs: Tensor) -> Tensor:
        """Lets inputs go through a prologue before the product."""
        if inputs.ndim == 2 and inputs.dtype == torch.float32:
            return self.native_weight.multiply(inputs, prologue)
        outputs = self.native_weight.multiply(inputs.reshape(-1, inputs.shape[-1]).float(), prologue)
        return outputs.reshape(*inputs.shape[:-1], self.out_features).to(inputs.dtype)

    def unpacked(self) -> Tensor:
        """As in `PackedLinear`."""
        return self.native_weight.unpacked()


class NativeInt8Linear(NativeLinear, Int8Linear):
    """Computes the same as `Int8Linear`, but for the order of two operations."""


class Nf4Linear(NativeLinear):
    """A linear layer with 4-bit weights; inputs are rounded to 8 bits at run time."""


class Float32Embedding(nn.Embedding):
    """An embedding that keeps its weights as stored and returns float32."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  the name is torch's
        return functional.embedding(input, self.weight).float()


def fits_float16(weight: Tensor) -> bool:
    """Returns whether all values of a weight are in float16's range."""
    low, high = torch.aminmax(weight.detach())
    return float(low) >= -MAX_FLOAT16 and float(high) <= MAX_FLOAT16
