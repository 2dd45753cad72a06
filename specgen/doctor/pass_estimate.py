"""Estimates the seconds of a pass over one token from sizes and from two short timings. Reads no weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from specgen.doctor.results import ModelPlan
from specgen.loading.resolved_model import ResolvedModel
from specgen.loading.weight_sizes import StoredWeights, bytes_per_pass
from specgen.models.kernels import int8_kernels, nf4_kernels
from specgen.models.packing import has_float_matmul

READ_BYTES = 1 << 28
"""Larger than the caches of most processors."""
NUM_CALLS = 1000
CALLS_PER_LAYER = 250
"""Small operations of torch that take as long as a layer without its weights. Passes of SmolLM2-135M with int8 weights
took 0.45 ms a layer beyond the time to read them, on a CPU where such an operation took 1.6 µs."""
CALLS_PER_NATIVE_LAYER = 45
"""Those that take as long as a layer of `NativeLayers`, which starts all threads six times, in 10 to 13 µs each."""

UNPACKING_SECONDS = 16e-12
"""Thread seconds that llama.cpp takes to unpack a quantized weight and multiply it, in addition to reading it.

A token of Qwen2.5-Coder-1.5B in Q4_K (1.78 billion weights) took 70 ms with two threads; reading its 1.11 GB at 20 GB/s
takes 56 ms.
"""
LLAMA_CPP_LAYER_SECONDS = 0.15e-3
"""Time that llama.cpp takes for a layer beyond its weights: its threads wait for each other after each operation.

Tokens of SmolLM2-135M in Q4_1 (30 layers) and Qwen2.5-Coder-0.5B in Q5_0 (24) took 12.5 and 38.5 ms on two threads, of
which reading at 22 GB/s takes 4.4 and 22. The rest is 0.18 ms a layer and 38 ps a weight, on a build without AMX.
"""
UNPACKED = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class MachineSpeed:
    """What a pass of a small batch costs.

    Args:
        bytes_per_second: Of reading weights.
        call_seconds: Of a small operation of torch.
        num_threads: Unpack the weights of GGUF files together.
    """

    bytes_per_second: float
    call_seconds: float
    num_threads: int = 1

    def pass_seconds(self, model: ResolvedModel, plan: ModelPlan, of_target: ModelPlan | None = None) -> float:
        """Estimates a pass of a model over one token; of a draft also with the plan of its target."""
        read = bytes_per_pass(model, _stored(plan), None if of_target is None else _stored(of_target))
        of_llama_cpp = _llama_cpp_seconds(model, self.num_threads)
        num_calls = _num_layers(model) * (CALLS_PER_NATIVE_LAYER if _runs_own_kernels(model, plan) else CALLS_PER_LAYER)
        return read / self.bytes_per_second + of_llama_cpp + num_calls * self.call_seconds


def _stored(plan: ModelPlan) -> StoredWeights:
    return StoredWeights(plan.memory.weights, plan.dtype, plan.quant, plan.device)


def measure_machine() -> MachineSpeed:
    """Times reading memory and calling torch, each a few times; takes a tenth of a second."""
    values, one = torch.ones(READ_BYTES // 4), torch.ones(1, 64)

    def call() -> None:
        for _ in range(NUM_CALLS):
            one.add(one)

    return MachineSpeed(READ_BYTES / _seconds(values.sum), _seconds(call) / NUM_CALLS, torch.get_num_threads())


def _seconds(work: Callable[[], object]) -> float:
    """Returns the shortest of a few times: others are disturbed."""
    found = []
    for _ in range(4):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


def _llama_cpp_seconds(model: ResolvedModel, num_threads: int) -> float:
    """Returns what a pass on llama.cpp takes beyond reading the weights; 0 for other models."""
    if model.gguf is None:
        return 0.0
    header = model.gguf.header
    num_packed = 0 if header.quantization in UNPACKED else header.num_parameters
    return num_packed * UNPACKING_SECONDS / num_threads + header.num_layers * LLAMA_CPP_LAYER_SECONDS


def _runs_own_kernels(model: ResolvedModel, plan: ModelPlan) -> bool:
    """Returns whether all layers of a short pass run in one call of native code, by format and architecture."""
    head = model.config.draft_head
    spec = model.config.decoder if head is None else head.spec
    if spec is None or plan.device != "cpu" or spec.attention_soft_cap is not None:
        return False
    if plan.quant == "none":
        return plan.dtype in ("bfloat16", "float16") and has_float_matmul(getattr(torch, plan.dtype))
    return {"int8": int8_kernels, "nf4": nf4_kernels}.get(plan.quant, lambda: None)() is not None


def _num_layers(model: ResolvedModel) -> int:
    """Returns the layers; none of a GGUF file's, which llama.cpp runs in one call."""
    config = model.config
    if model.gguf is not None:
        return 0
    if config.draft_head is not None:
        return 1 if config.draft_head.spec is None else len(config.draft_head.spec.layers)
    if config.decoder is not None:
        return len(config.decoder.layers)
    number = config.values.get("num_hidden_layers")
    return number if isinstance(number, int) else 0
