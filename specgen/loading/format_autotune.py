"""Measures which weight format a draft model runs fastest in on this machine.

Processor flags say which kernels exist, not which of them is fastest at one row: that depends on memory bandwidth,
threads and library versions. So one layer of the draft's own widths is timed in each format, and the times are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from specgen.core.machine import processor_name, version_of
from specgen.models.formats import Float16Linear, Int8Linear, has_float16_matmul, has_int8_matmul, packed_linear
from specgen.models.quantized import quantized_linear

if TYPE_CHECKING:
    from specgen.storage.cost_store import CostKey, CostStore

NUM_SAMPLES = 5
MAX_WEIGHTS = 16_000_000
"""Of the timed layer: a wider one is cut, so that creating it takes less than a second."""
FLUSH_BYTES = 96 * 1024 * 1024
"""Written before each timed pass: a single layer would stay in the processor's cache, a whole model's weights don't."""
WORTHWHILE = 0.95
"""A format must take less than this share of the unquantized time to be worth its rounding."""
LEAST_MEASURED = 20_000_000
"""Parameters; in a smaller draft, matrix products don't decide the speed."""


@dataclass(frozen=True, slots=True)
class Layer:
    """The feed-forward layer that is timed."""

    hidden: int
    intermediate: int
    dtype: str
    device: str


def measured_seconds(formats: Sequence[str], layer: Layer) -> dict[str, float]:
    """Times one row through a layer in each format: the minimum of several runs, the formats in turn.

    A format whose kernels fail on this machine is left out.
    """
    passes: dict[str, Callable[[], Any]] = {}
    with torch.inference_mode():
        for name in formats:
            try:
                passes[name] = _row_pass(name, layer)
                passes[name]()
            except (RuntimeError, NotImplementedError, AttributeError, ValueError, ImportError, OSError):
                passes.pop(name, None)
        flushed = torch.zeros(FLUSH_BYTES // 4, device=layer.device)
        samples: dict[str, list[float]] = {name: [] for name in passes}
        for _ in range(NUM_SAMPLES):
            for name, run in passes.items():
                flushed.add_(1.0)
                _synchronize(layer.device)
                started = perf_counter()
                run()
                _synchronize(layer.device)
                samples[name].append(perf_counter() - started)
    return {name: min(values) for name, values in samples.items()}


def fastest_format(
    formats: Sequence[str],
    layer: Layer,
    times: CostStore | None = None,
    measure: Callable[[Sequence[str], Layer], dict[str, float]] = measured_seconds,
) -> tuple[str, str]:
    """Returns the fastest weight format of a draft, and the reason; the reason is empty if there is no choice.

    Args:
        formats: What this machine can run, of `none`, `int8` and `nf4`.
        times: Stored measurements; None: measure.
    """
    if len(formats) < 2:
        return "none", ""
    key = _cost_key(layer)
    seconds = {} if times is None else times.read(key)
    if not set(formats) <= seconds.keys():
        seconds = measure(formats, layer)
        if times is not None:
            times.write(key, seconds, list(seconds))
    return decide({name: seconds[name] for name in formats if name in seconds})


def decide(seconds: Mapping[str, float]) -> tuple[str, str]:
    """Returns the fastest format, `none` unless another one is clearly faster, and the reason."""
    if not seconds:
        return "none", "not quantized: no weight format could be timed here"
    chosen = min(seconds, key=lambda name: seconds[name])
    if "none" in seconds and seconds[chosen] > WORTHWHILE * seconds["none"]:
        chosen = "none"
    figures = ", ".join(f"{name} {1000 * seconds[name]:.2f}" for name in sorted(seconds, key=lambda n: seconds[n]))
    return chosen, f"{chosen} by measurement, ms per layer: {figures}"


def _row_pass(name: str, layer: Layer) -> Callable[[], Any]:
    """Returns a pass of one row through `[2 * intermediate, hidden]` and `[hidden, intermediate]` of a format."""
    hidden = layer.hidden
    intermediate = max(64, min(layer.intermediate, MAX_WEIGHTS // (3 * hidden)) // 64 * 64)
    gate_up_proj = _linear(name, torch.randn(2 * intermediate, hidden) / 30, layer)
    down_proj = _linear(name, torch.randn(hidden, intermediate) / 30, layer)
    # Packed layers take float32 inputs.
    is_packed = isinstance(gate_up_proj, Int8Linear | Float16Linear)
    dtype = torch.float32 if is_packed else getattr(torch, layer.dtype)
    row, middle = (torch.randn(1, width, dtype=dtype, device=layer.device) for width in (hidden, intermediate))
    return lambda: (gate_up_proj(row), down_proj(middle))


def _linear(name: str, weight: Tensor, layer: Layer) -> Any:
    """Returns a linear layer as the loader creates it for a draft."""
    if layer.device == "cpu" and name == "int8" and has_int8_matmul():
        return packed_linear(weight, Int8Linear)
    if layer.device == "cpu" and name == "none" and layer.dtype == "float16" and has_float16_matmul():
        return packed_linear(weight, Float16Linear)
    weight = weight.to(layer.device, getattr(torch, layer.dtype))
    if name != "none":
        return quantized_linear(weight, None, name)
    num_outputs, num_inputs = weight.shape
    dense = nn.Linear(num_inputs, num_outputs, bias=False, device="meta")
    dense.weight = nn.Parameter(weight, requires_grad=False)
    return dense


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _cost_key(layer: Layer) -> CostKey:
    device = layer.device
    return {
        "role": "formats",
        "hidden": layer.hidden,
        "intermediate": layer.intermediate,
        "dtype": layer.dtype,
        "device": device,
        "processor": torch.cuda.get_device_name(device) if device.startswith("cuda") else processor_name(),
        "threads": torch.get_num_threads(),
        "versions": " ".join(f"{name} {version_of(name)}" for name in ("torch", "bitsandbytes")),
    }
