"""Runs all layers of a short pass in one call of native code, on CPUs where our own kernels run each part of a layer.

Between the kernels, Python took a fifth of a draft's pass over one token (Qwen2.5-Coder-0.5B in nf4 on two cores), and
half of SmolLM2-135M's. The steps of a pass depend on its number of rows, and are written once for each number.
Positions and the addresses of the cache are written for each pass. The results are those of single calls, bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy
import torch
from torch import Tensor

from specgen.models.attention_code import ARGUMENTS
from specgen.models.attention_kernel import AttentionKernel, NewRows
from specgen.models.decoder_spec import DecoderSpec, LayerSpec
from specgen.models.native_code import openmp_parallel
from specgen.models.native_steps import MAX_ROWS, LayerSteps, StepMemory
from specgen.models.pass_threads import PassThreads
from specgen.models.stored_slots import Rotations

if TYPE_CHECKING:
    from specgen.models.decoder import Segment
    from specgen.models.kv_slots import SliceSlots
    from specgen.models.layer_parts import LayerParts

_KEYS = list(ARGUMENTS).index("keys")
assert list(ARGUMENTS)[_KEYS + 1] == "values", "both are written at once"


class NativeLayers:
    """Layers that run in one call where they can.

    Args:
        segment: The layers. Their weights stay the same once they have run.
    """

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._parts: Sequence[LayerParts] | None = None
        """Found at the first short pass; empty: they can't run in one call."""
        self._memory: StepMemory | None = None
        self._passes: dict[tuple[int, int], NativePass] = {}
        """By the numbers of rows and threads."""
        self._threads = PassThreads()

    def __deepcopy__(self, memo: dict[int, object]) -> NativeLayers:
        """Returns an object that runs copies of the layers, with steps of its own: addresses differ."""
        return NativeLayers(copy.deepcopy(self._segment, memo))

    def run(self, hidden: Tensor, rotations: Rotations, slots: SliceSlots) -> Tensor:
        """Turns inputs of the first layer `[n, hidden]` into outputs of the last; the slots have begun the pass."""
        if slots.kernel is None or hidden.shape[0] > MAX_ROWS or not self._fits(slots.kernel, rotations):
            return self._segment.run(hidden, rotations, slots)
        kernel = slots.kernel
        return self._threads.run(lambda: self._pass(hidden.shape[0], kernel).run(hidden, rotations, slots))

    def _fits(self, kernel: AttentionKernel, rotations: Rotations) -> bool:
        """Returns whether our own kernels run each part of the layers."""
        if self._parts is None:
            self._parts = self._parts_of_all()
        return bool(self._parts) and all(cos.shape[-1] == kernel.rotary_size for cos, _ in rotations.values())

    def _parts_of_all(self) -> Sequence[LayerParts]:
        layers = self._segment.layers
        parts = [layer.parts for layer in layers if layer.parts is not None]
        fit = all(product.weight.fits(MAX_ROWS) for part in parts for product in part.products)
        return parts if fit and len(parts) == len(layers) else []

    def _pass(self, num_rows: int, kernel: AttentionKernel) -> NativePass:
        spec, key = self._segment.spec, (num_rows, torch.get_num_threads())
        if key not in self._passes:
            assert self._parts, "the caller has checked it"
            if self._memory is None:
                self._memory = StepMemory(spec, self._parts)
            steps = LayerSteps(spec, self._parts, self._memory, kernel, num_rows)
            self._passes[key] = NativePass(spec, self._parts[0].qkv.weight.num_computed, self._memory, steps)
        return self._passes[key]


class NativePass:
    """A pass over a fixed number of rows.

    Args:
        spec: The decoder with these layers only.
        width: Values of a row of queries, keys and values, with those that are not used.
        memory: Where it computes.
        steps: Its steps.
    """

    def __init__(self, spec: DecoderSpec, width: int, memory: StepMemory, steps: LayerSteps) -> None:
        self._spec = spec
        num_rows, num_kv_heads = steps.num_rows, spec.num_kv_heads
        used = (spec.num_heads + 2 * num_kv_heads) * spec.head_size
        rows = memory.qkv[: num_rows * width].view(num_rows, width)[:, :used].view(num_rows, -1, spec.head_size)
        self._values = rows.narrow(1, spec.num_heads + num_kv_heads, num_kv_heads)
        self._heads = rows.narrow(1, 0, spec.num_heads + num_kv_heads)
        self._hidden, self._attended = memory.hidden[:num_rows], memory.attended[:num_rows]
        self._kernels, self._attention_kernel = steps.kernels, steps.attention_kernel
        self._num_threads = steps.num_threads
        # Both stay where they are: the steps have the addresses of their arguments.
        self._arguments = numpy.array(steps.arguments, numpy.int64)
        first = self._arguments.ctypes.data
        self._steps = numpy.array([(run, first + 8 * index, inputs) for run, index, inputs in steps.steps], numpy.int64)
        self._stored = numpy.array(steps.attention)[:, None] + [_KEYS, _KEYS + 1]
        by_kind: dict[LayerSpec, list[int]] = {}
        for index, layer in enumerate(spec.layers):
            by_kind.setdefault(layer, []).append(index)
        columns = numpy.arange(len(ARGUMENTS))
        self._alike = [
            (layers[0], numpy.array([[steps.attention[layer]] for layer in layers]) + columns)
            for layers in by_kind.values()
        ]
        """For each kind of layers: the first one, and the indices of the arguments of all `[layers, arguments]`."""

    def run(self, hidden: Tensor, rotations: Rotations, slots: SliceSlots) -> Tensor:
        """Turns inputs `[n, hidden]` into outputs; the slots have begun the pass."""
        self._hidden.copy_(hidden)
        arguments = self._arguments
        # Attention computes in the scores, and reads the table: both live until it has run.
        scores: list[Tensor] = []
        kernel = slots.kernel
        assert kernel is not None, "the caller has checked it"
        for layer, places in self._alike:
            rotary, seen = self._spec.layers[layer].rotary, slots.seen(layer)
            table = None if rotary is None else rotations[rotary]
            new = NewRows(self._heads, self._values, table, slots.first)
            scores.append(self._hidden.new_empty(kernel.num_scores(hidden.shape[0], seen)))
            memory = (self._attended, scores[-1])
            arguments[places] = kernel.arguments(new, slots.stored(layer), seen, self._spec.attention_scale, memory)
        stored = [slots.stored(layer) for layer in range(len(self._spec.layers))]
        arguments[self._stored] = [[keys.data_ptr(), values.data_ptr()] for keys, values in stored]
        self._kernels.run_steps(self._steps.ctypes.data, len(self._steps), openmp_parallel() or 0, self._num_threads)
        return self._hidden.clone()
