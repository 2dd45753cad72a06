"""Linear layers with weights narrower than the arithmetic, for CPUs without bfloat16 instructions.

There a product of a few rows in bfloat16 costs a full pass per row, and one in float32 reads twice the bytes and takes
three times as long at three rows as at one. torch's FBGEMM kernels read float16 weights and compute in float32:
measured on two Zen 3 cores, 8960 x 1536, one row 0.89 ms (bfloat16 1.55, float32 3.08), six rows 1.17 ms (8.0, 10.6).
So a draft of five tokens is checked for the price of 1.3 single ones, and even plain decoding gains.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LARGEST_HALF = 65504.0
JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of the same inputs, by their names in the Llama family: held as one."""


@lru_cache(maxsize=1)
def has_float16_matmul() -> bool:
    """Whether this torch and this CPU run `Float16Linear`."""
    return _works(Float16Linear)


@lru_cache(maxsize=1)
def has_int8_matmul() -> bool:
    """Whether this torch and this CPU run `Int8Linear`. Its kind of tensor is to leave torch one day."""
    return _works(Int8Linear)


def _works(kind: NarrowKind) -> bool:
    try:
        with _no_farewell():
            kind(torch.zeros(16, 16), None)(torch.zeros(1, 16))
    except (RuntimeError, NotImplementedError, AttributeError):
        return False
    return True


@contextmanager
def _no_farewell() -> Iterator[None]:
    """torch announces the end of quantized tensors to whoever makes one; `has_int8_matmul` will notice it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.quantize_per_tensor")
        yield


class Float16Linear(nn.Module):
    """A linear layer with float16 weights; inputs, sums and outputs are float32.

    Args:
        weight: float32 `[outputs, inputs]`, rounded to float16 once; no value may be beyond its range.
        bias: float32 `[outputs]`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)
        self.num_bytes = 2 * self.in_features * self.out_features

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = torch.ops.quantized.linear_dynamic_fp16(inputs, self._packed)
        return outputs

    def unpacked(self) -> Tensor:
        """The weight, float32 `[outputs, inputs]`, made anew."""
        weight: Tensor = torch.ops.quantized.linear_unpack_fp16(self._packed)[0]
        return weight.float()


class Int8Linear(nn.Module):
    """A linear layer with int8 weights, a scale per output; inputs are rounded to 8 bits, too, as they come.

    For drafts only: one scale serves all rows of the inputs, so a row's result depends on the others.

    Args:
        weight: float32 `[outputs, inputs]`.
        bias: float32 `[outputs]`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        scales = weight.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        zeros = torch.zeros(self.out_features, dtype=torch.int64)
        rounded = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        self._packed = torch.ops.quantized.linear_prepack(rounded, bias)
        self.num_bytes = (self.in_features + 4) * self.out_features

    def forward(self, inputs: Tensor) -> Tensor:
        # Without spare bits the sums of two products overflow on CPUs without VNNI.
        outputs: Tensor = torch.ops.quantized.linear_dynamic(inputs, self._packed, True)
        return outputs


NarrowKind = type[Float16Linear] | type[Int8Linear]


class OutputSlice(nn.Module):
    """Some of the outputs of a joint layer: what one of the layers joined in it computes.

    Whoever wants all of them asks `joint`, and pays once.

    Args:
        joint: The layer that holds the weights.
        first: First output.
        num_outputs: How many.
    """

    def __init__(self, joint: Float16Linear | Int8Linear, first: int, num_outputs: int) -> None:
        super().__init__()
        self.joint = joint
        self.first, self.in_features, self.out_features = first, joint.in_features, num_outputs

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.joint(inputs)
        return outputs[..., self.first : self.first + self.out_features]


class Float32Embedding(nn.Embedding):
    """An embedding that keeps its weights as stored and hands out float32."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  the name is torch's
        return functional.embedding(input, self.weight).float()


def narrow(model: Any, kind: NarrowKind) -> int:
    """Replace a model's linear layers, in place; what remains computes in float32.

    A layer with a weight beyond float16's range stays, in float32.

    Args:
        model: A transformers model on the CPU, weights as stored.
        kind: What to put in place of `torch.nn.Linear`.

    Returns:
        Bytes that the new layers hold.
    """
    inputs = model.get_input_embeddings()
    num_bytes = convert_layers(model, kind)
    for parameter in model.parameters():
        if parameter is not inputs.weight:
            parameter.data = parameter.data.float()
    if type(inputs) is nn.Embedding:
        inputs.__class__ = Float32Embedding
        # The last tensor on the file's pages: with it they are let go.
        inputs.weight.data = inputs.weight.data.clone()
    else:
        inputs.weight.data = inputs.weight.data.float()
    return num_bytes


def convert_layers(module: nn.Module, kind: type[Float16Linear] | type[Int8Linear]) -> int:
    """Replace a module's linear layers, in place; all else stays. Returns the bytes that the new layers hold."""
    work = [job for parent in module.modules() for job in _groups(parent)]
    # Packing is one long loop per layer that releases the interpreter; a long one begun last would run alone.
    work.sort(key=lambda job: -sum(getattr(job[0], name).weight.numel() for name in job[1]))
    with _no_farewell(), ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return sum(pool.map(lambda job: _replace(job[0], job[1], kind), work))


def converted(weight: Tensor, kind: type[Float16Linear] | type[Int8Linear]) -> Float16Linear | Int8Linear:
    """A layer of this kind with a copy of a weight `[outputs, inputs]`."""
    with _no_farewell():
        return kind(weight.detach().float(), None)


def _groups(parent: nn.Module) -> list[tuple[nn.Module, tuple[str, ...]]]:
    """The linear layers right under a module, by name; those that can be held as one together."""
    names = [name for name, layer in parent.named_children() if type(layer) is nn.Linear]
    found: list[tuple[str, ...]] = []
    for group in JOINED:
        biases = {getattr(parent, name).bias is None for name in group if name in names}
        if set(group) <= set(names) and len(biases) == 1:
            found.append(group)
            names = [name for name in names if name not in group]
    return [(parent, group) for group in [*found, *((name,) for name in names)]]


def _replace(parent: nn.Module, names: tuple[str, ...], kind: NarrowKind) -> int:
    layers: list[nn.Linear] = [getattr(parent, name) for name in names]
    if kind is Float16Linear and not all(_fits_half(layer.weight) for layer in layers):
        return 0
    weights = [layer.weight.detach() for layer in layers]
    weight = (weights[0] if len(weights) == 1 else torch.cat(weights)).float()
    biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
    joint = kind(weight, torch.cat(biases).float() if biases else None)
    first = 0
    for name, layer in zip(names, layers, strict=True):
        setattr(parent, name, joint if len(names) == 1 else OutputSlice(joint, first, layer.out_features))
        first += layer.out_features
    return joint.num_bytes


def _fits_half(weight: Tensor) -> bool:
    low, high = torch.aminmax(weight.detach())
    return float(low) >= -LARGEST_HALF and float(high) <= LARGEST_HALF
