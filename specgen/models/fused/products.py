"""Matrix products of few rows on CUDA."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from specgen.models.decoder_spec import Activation
from specgen.models.forward_pass import gated
from specgen.models.fused.divisions import Division, dense_division, nf4_division
from specgen.models.fused.support import launch_options, launching_on
from specgen.models.fused.unpacking import NF4, unpacking
from specgen.models.gemm_4bit import BLOCK, GemmNf4Linear

TILE = 16
"""Rows that tensor cores multiply at once."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Outputs of a product whose inputs were divided: the next kernel adds the parts and the bias.

    Args:
        tensor: `[parts, rows, columns]`; float32, or one part in the compute type.
        bias: `[columns]`.
    """

    tensor: Tensor
    bias: Tensor | None = None

    @property
    def count(self) -> int:
        """Returns the number of parts."""
        return self.tensor.shape[0]


class FewRowsProduct(ABC):
    """A linear layer for few rows."""

    takes_split = False
    """Whether `parts` and `gated` get their inputs in the order of `split_inputs`."""
    has_exact_rows = False
    """Whether a row has the same result, bit for bit, for any number of rows."""

    @abstractmethod
    def parts(self, inputs: Tensor) -> Parts:
        """Turns inputs `[rows, inputs]` into outputs in parts."""

    @abstractmethod
    def gated(self, inputs: Tensor, activation: Activation, *, is_split: bool = False) -> Tensor:
        """Turns inputs into `[rows, columns / 2]`: the first half of the columns activated, times the second half.

        Args:
            inputs: `[rows, inputs]`.
            activation: Of the first half.
            is_split: What is returned is in the order of `split_inputs`.
        """

    @abstractmethod
    def whole(self, inputs: Tensor) -> Tensor:
        """Turns inputs `[rows, inputs]`, in their own order, into outputs `[rows, columns]`."""


def product_of(module: nn.Module) -> FewRowsProduct:
    """Returns a linear layer as a product of few rows."""
    if type(module) is nn.Linear:
        weight: Tensor = module.weight
        if weight.dtype in (torch.bfloat16, torch.float16) and weight.is_contiguous():
            return DenseProduct(weight, module.bias)
    if isinstance(module, GemmNf4Linear):
        return Nf4Product(module)
    return OtherProduct(module)


class KernelProduct(FewRowsProduct):
    """A product on our own kernels.

    Args:
        num_columns: Outputs.
        num_inputs: Inputs.
        bias: `[num_columns]`.
    """

    has_exact_rows = True

    def __init__(self, num_columns: int, num_inputs: int, bias: Tensor | None) -> None:
        self._num_columns, self._num_inputs, self._bias = num_columns, num_inputs, bias

    def parts(self, inputs: Tensor, division: Division | None = None) -> Parts:
        """As in `FewRowsProduct`."""
        division = division or self._divide(inputs.device, is_whole=False)
        out = inputs.new_empty(division.num_parts, inputs.shape[0], self._num_columns, dtype=torch.float32)
        self._launch(inputs, out, division, {"HAS_BIAS": False, "GATE": "none", "IS_SPLIT": False})
        return Parts(out, self._bias)

    def gated(self, inputs: Tensor, activation: Activation, *, is_split: bool = False) -> Tensor:
        """As in `FewRowsProduct`."""
        if self._bias is not None:
            return _gated(self._outputs(inputs), activation, is_split=is_split)
        out = inputs.new_empty(inputs.shape[0], self._num_columns // 2)
        options = {"HAS_BIAS": False, "GATE": activation, "IS_SPLIT": is_split}
        self._launch(inputs, out, self._divide(inputs.device, is_whole=True), options)
        return out

    def whole(self, inputs: Tensor) -> Tensor:
        """As in `FewRowsProduct`."""
        with launching_on(inputs):
            return self._outputs(split(inputs) if self.takes_split else inputs)

    def _outputs(self, inputs: Tensor) -> Tensor:
        out = inputs.new_empty(inputs.shape[0], self._num_columns)
        options = {"HAS_BIAS": self._bias is not None, "GATE": "none", "IS_SPLIT": False}
        self._launch(inputs, out, self._divide(inputs.device, is_whole=True), options)
        return out

    @abstractmethod
    def _divide(self, device: torch.device, *, is_whole: bool) -> Division:
        """Chooses how the product is divided."""

    @abstractmethod
    def _launch(self, inputs: Tensor, out: Tensor, division: Division, options: dict[str, Any]) -> None:
        """Starts the kernel with these constants."""

    def _constants(self, out: Tensor, division: Division, options: dict[str, Any]) -> dict[str, Any]:
        """Returns the constants and options that a launch needs for any kind of weight."""
        return {
            "NUM_COLUMNS": out.shape[-1],
            "NUM_INPUTS": self._num_inputs,
            "NUM_PARTS": division.num_parts,
            "COLUMNS": division.columns,
            "num_warps": division.num_warps,
            "num_stages": division.num_stages,
            **options,
            **launch_options(out.device),
        }


class DenseProduct(KernelProduct):
    """A product with a weight in 16 bits.

    Args:
        weight: `[columns, inputs]`.
        bias: `[columns]`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        num_columns, num_inputs = weight.shape
        super().__init__(num_columns, num_inputs, bias)
        self._weight = weight

    def _divide(self, device: torch.device, *, is_whole: bool) -> Division:
        return dense_division(self._num_columns, self._num_inputs, _num_processors(device), is_whole=is_whole)

    def _launch(self, inputs: Tensor, out: Tensor, division: Division, options: dict[str, Any]) -> None:
        from specgen.models.fused.kernels.products import multiply

        num_rows, num_columns = inputs.shape[0], out.shape[-1]
        kernel: Any = multiply[(-(-num_columns // division.columns), division.num_parts)]
        kernel(
            inputs,
            self._weight,
            inputs if self._bias is None else self._bias,
            out,
            num_rows,
            TILE=TILE if num_rows <= TILE else 2 * TILE,
            BLOCK=division.block,
            **self._constants(out, division, options),
        )


class Nf4Product(KernelProduct):
    """A product with a weight in nf4, which the layer keeps.

    Args:
        layer: The layer.
    """

    takes_split = True

    def __init__(self, layer: GemmNf4Linear) -> None:
        super().__init__(layer.out_features, layer.in_features, layer.bias)
        self._weight, self._scales = layer.packed, layer.scales_by_block()
        self._code = torch.tensor(NF4, device=self._weight.device)

    def _divide(self, device: torch.device, *, is_whole: bool) -> Division:
        return nf4_division(self._num_columns, self._num_inputs, _num_processors(device), is_whole=is_whole)

    def _launch(self, inputs: Tensor, out: Tensor, division: Division, options: dict[str, Any]) -> None:
        from specgen.models.fused.kernels.products import multiply_nf4

        num_rows, num_columns = inputs.shape[0], out.shape[-1]
        grid = (-(-num_rows // TILE), -(-num_columns // division.columns), division.num_parts)
        kernel: Any = multiply_nf4[grid]
        kernel(
            inputs,
            self._weight,
            self._scales,
            self._code,
            inputs if self._bias is None else self._bias,
            out,
            num_rows,
            TILE=TILE,
            UNROLLED=division.block // BLOCK,
            ASSEMBLY=unpacking(inputs.dtype) if inputs.is_cuda else "",
            **self._constants(out, division, options),
        )


class OtherProduct(FewRowsProduct):
    """Any other linear layer, called as it is.

    Args:
        module: The layer.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def parts(self, inputs: Tensor) -> Parts:
        """As in `FewRowsProduct`."""
        return Parts(self.whole(inputs)[None])

    def gated(self, inputs: Tensor, activation: Activation, *, is_split: bool = False) -> Tensor:
        """As in `FewRowsProduct`."""
        return _gated(self.whole(inputs), activation, is_split=is_split)

    def whole(self, inputs: Tensor) -> Tensor:
        """As in `FewRowsProduct`."""
        outputs: Tensor = self._module(inputs)
        return outputs


def _gated(outputs: Tensor, activation: Activation, *, is_split: bool) -> Tensor:
    """Computes what `FewRowsProduct.gated` returns from outputs `[rows, columns]`."""
    active = gated(activation, outputs)
    return split(active) if is_split else active


def split(inputs: Tensor) -> Tensor:
    """Returns inputs `[rows, size]` in the order of `split_inputs`."""
    return inputs.view(inputs.shape[0], -1, BLOCK // 2, 2).transpose(2, 3).reshape(inputs.shape)


@cache
def _num_processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.multi_processor_count)
