"""Writes down the steps of a pass of all layers, with the addresses of their weights and their memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from specgen.models.attention_code import ARGUMENTS as ATTENTION_ARGUMENTS
from specgen.models.decoder_spec import DecoderSpec
from specgen.models.native_code import bits_of, floats
from specgen.models.native_weight import Prologue
from specgen.models.step_kernels import norm_arguments, step_kernels

if TYPE_CHECKING:
    from specgen.models.attention_kernel import AttentionKernel
    from specgen.models.layer_parts import LayerParts, Product

MAX_ROWS = 17
"""Rows of the longest pass: a tree of 16 nodes and the token before it. In longer ones, Python's share is small."""


class StepMemory:
    """The memory that passes compute in, for the longest one.

    `doctor` does not count it: for a model of 1.5B it is 2.5 MB, and the activations of a chunk of the prompt, which it
    counts, are 80 MB. Both grow with the same widths, so it stays near 3 % of them.

    Args:
        spec: The decoder.
        parts: Of its layers.
    """

    def __init__(self, spec: DecoderSpec, parts: Sequence[LayerParts]) -> None:
        rows, products = MAX_ROWS, [product for part in parts for product in part.products]
        self.hidden, self.added = floats(rows, spec.hidden_size), floats(rows, spec.hidden_size)
        self.qkv = floats(rows * max(part.qkv.weight.num_computed for part in parts))
        self.attended = floats(rows, spec.num_heads * spec.head_size)
        self.gate_up = floats(rows, 2 * spec.intermediate_size)
        self.scratch = floats(max(product.weight.num_scratch(rows, product.prologue) for product in products))


class LayerSteps:
    """The steps of passes over a fixed number of rows: addresses of functions, and their arguments.

    Args:
        spec: The decoder.
        parts: Of the layers.
        memory: Where they compute.
        kernel: Attends.
        num_rows: Rows of a pass.
    """

    def __init__(
        self, spec: DecoderSpec, parts: Sequence[LayerParts], memory: StepMemory, kernel: AttentionKernel, num_rows: int
    ) -> None:
        self._spec, self._memory = spec, memory
        self.num_rows, self.num_threads = num_rows, torch.get_num_threads()
        kernels = step_kernels()
        assert kernels is not None, "layers have parts on machines that run them"
        self.attention_kernel, self.kernels = kernel, kernels
        """The steps have addresses in their code, so both must live as long as the steps run."""
        self.steps: list[tuple[int, int, int]] = []
        """Of each step: the address of its function, the index of its arguments, and the address of its inputs."""
        self.arguments: list[int] = []
        """Of all steps, one after the other."""
        self.attention: list[int] = []
        """Indices of the arguments of attention, by layer. They are written for each pass."""
        for part in parts:
            self._append_layer(part)

    def _append_layer(self, part: LayerParts) -> None:
        memory = self._memory
        self._append_product(part.qkv, memory.hidden.data_ptr(), memory.qkv.data_ptr())
        if part.qk_norms is not None:
            self._append_qk_norms(part.qk_norms, part.qkv.weight.num_computed)
        self.attention.append(len(self.arguments))
        self._append(self.attention_kernel.code.address("run"), [0] * len(ATTENTION_ARGUMENTS), 0)
        self._append_product(part.output, memory.attended.data_ptr(), memory.added.data_ptr())
        self._append_sum(part.attention_out)
        self._append_product(part.gate_up, memory.hidden.data_ptr(), memory.gate_up.data_ptr())
        self._append_product(part.down, memory.gate_up.data_ptr(), memory.added.data_ptr())
        self._append_sum(part.mlp_out)

    def _append_product(self, product: Product, inputs: int, outputs: int) -> None:
        scratch = self._memory.scratch.data_ptr()
        arguments = product.weight.arguments(self.num_rows, product.prologue, scratch, outputs, self.num_threads)
        self._append(product.weight.kernels.code.address("run"), arguments, inputs)

    def _append_qk_norms(self, norms: tuple[Prologue, Prologue], width: int) -> None:
        """Appends the norms of queries and keys, each over one head or over all."""
        num_channels = [heads * self._spec.head_size for heads in (self._spec.num_heads, self._spec.num_kv_heads)]
        inputs = self._memory.qkv.data_ptr()
        for norm, number in zip(norms, num_channels, strict=True):
            self._append_norm(norm, inputs, number, width)
            inputs += 4 * number

    def _append_sum(self, norm: Prologue | None) -> None:
        """Appends the norm of what a part of a layer computed, if it has one, and the sum with the residual stream."""
        size, added = self._spec.hidden_size, self._memory.added.data_ptr()
        if norm is not None:
            self._append_norm(norm, added, size, size)
        sum_arguments = [self._memory.hidden.data_ptr(), self.num_rows * size, bits_of(self._spec.residual_scale)]
        self._append(self.kernels.add_address, sum_arguments, added)

    def _append_norm(self, norm: Prologue, inputs: int, num_channels: int, row_stride: int) -> None:
        assert norm.weight is not None, "it is a norm"
        num_norms = num_channels // norm.weight.shape[0]
        self._append(self.kernels.norm_address, norm_arguments(norm, num_norms, self.num_rows, row_stride), inputs)

    def _append(self, function: int, arguments: Sequence[int], inputs: int) -> None:
        self.steps.append((function, len(self.arguments), inputs))
        self.arguments += arguments
