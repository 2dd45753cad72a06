"""Measures which weight format a draft model runs fastest in on this machine.

Processor flags say which kernels exist, not which of them is fastest at one row: that depends on memory bandwidth,
threads and library versions. So one layer of the draft's own widths is timed in each format, and the times are stored.

On CUDA a host clock around a layer would time Python. There the passes of a round are recorded and replayed through
many layers with weights of their own, as in the draft itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, isfinite
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from specgen.core.machine import processor_name, version_of
from specgen.models.formats import Float16Linear, Int8Linear, has_float16_matmul, has_int8_matmul, packed_linear
from specgen.models.quantized import quantized_linear
from specgen.models.timing import FLUSH_BYTES, Timer, timer_for

if TYPE_CHECKING:
    from specgen.storage.cost_store import CostKey, CostStore

NUM_SAMPLES = 5
MAX_WEIGHTS = 16_000_000
"""Of the timed layer: a wider one is cut, so that creating it takes less than a second."""
MAX_LAYERS = 96
"""Layers that are timed at once on CUDA."""
ROUND = {1: 3.5, 4: 0.25, 6: 0.25}
"""Passes of a round by their rows: it drafts four tokens. The first pass also reads what the draft did not propose,
which is several tokens after a round of lookup; all others read one token."""
FAILURES = (RuntimeError, NotImplementedError, AttributeError, ValueError, ImportError, OSError)
"""What formats raise that don't run on this machine."""
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

    @property
    def timed_intermediate(self) -> int:
        """The width inside the layer, cut to `MAX_WEIGHTS` and to whole blocks of all formats."""
        return max(64, min(self.intermediate, MAX_WEIGHTS // (3 * self.hidden)) // 64 * 64)


def measured_seconds(formats: Sequence[str], layer: Layer) -> dict[str, float]:
    """Times a layer in each format. A format whose kernels fail on this machine is left out."""
    if layer.device.startswith("cuda"):
        try:
            timer = timer_for(torch.device(layer.device))
        except RuntimeError:  # the device is full
            return {}
        return round_seconds(formats, layer, timer)
    return _row_seconds(formats, layer)


@torch.inference_mode()
def round_seconds(formats: Sequence[str], layer: Layer, timer: Timer) -> dict[str, float]:
    """Times the passes of a round, with more weights than the device's cache holds.

    Args:
        formats: Formats to time.
        layer: A layer of the draft.
        timer: Of the layer's device.

    Returns:
        Mean seconds of a pass of a round per layer, by format.
    """
    found = {}
    for name in formats:
        try:
            layers = [_Products(name, layer) for _ in range(num_timed_layers(layer))]
            seconds = timer.seconds([_pass_through(layers, rows) for rows in ROUND])
        except FAILURES:
            continue
        mean = sum(share * each for share, each in zip(ROUND.values(), seconds, strict=True)) / sum(ROUND.values())
        if isfinite(mean):
            found[name] = mean / len(layers)
    return found


def num_timed_layers(layer: Layer) -> int:
    """Returns how many layers hold more than a device's cache, with weights of 4 bits."""
    return min(MAX_LAYERS, ceil(2 * FLUSH_BYTES / (3 * layer.hidden * layer.timed_intermediate)))


def _row_seconds(formats: Sequence[str], layer: Layer) -> dict[str, float]:
    """Times one row on the host's clock: the minimum of several runs, the formats in turn."""
    passes: dict[str, Callable[[], Any]] = {}
    with torch.inference_mode():
        for name in formats:
            try:
                passes[name] = _pass_through([_Products(name, layer)], 1)
                passes[name]()
            except FAILURES:
                passes.pop(name, None)
        flushed = torch.zeros(FLUSH_BYTES // 4, device=layer.device)
        samples: dict[str, list[float]] = {name: [] for name in passes}
        for _ in range(NUM_SAMPLES):
            for name, run in passes.items():
                flushed.add_(1.0)
                started = perf_counter()
                run()
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
    digits = 2 if min(seconds.values()) >= 1e-4 else 4
    ranked = sorted(seconds, key=lambda name: seconds[name])
    figures = ", ".join(f"{name} {1000 * seconds[name]:.{digits}f}" for name in ranked)
    return chosen, f"{chosen} by measurement, ms per layer: {figures}"


class _Products:
    """Products of one layer: `[2 * intermediate, hidden]` and `[hidden, intermediate]` of a format."""

    def __init__(self, name: str, layer: Layer) -> None:
        hidden, intermediate = layer.hidden, layer.timed_intermediate
        self.gate_up_proj = _linear(name, torch.randn(2 * intermediate, hidden, device=layer.device) / 30, layer)
        self.down_proj = _linear(name, torch.randn(hidden, intermediate, device=layer.device) / 30, layer)
        # Packed layers take float32 inputs.
        is_packed = isinstance(self.gate_up_proj, Int8Linear | Float16Linear)
        dtype = torch.float32 if is_packed else getattr(torch, layer.dtype)
        self.widths = (hidden, intermediate)
        self.like = torch.empty(0, dtype=dtype, device=layer.device)


def _pass_through(layers: Sequence[_Products], num_rows: int) -> Callable[[], None]:
    """Returns a pass of a few rows through layers."""
    like = layers[0].like
    rows, middle = (torch.randn(num_rows, width, dtype=like.dtype, device=like.device) for width in layers[0].widths)

    def run() -> None:
        for layer in layers:
            layer.gate_up_proj(rows)
            layer.down_proj(middle)

    return run


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


def _cost_key(layer: Layer) -> CostKey:
    device = layer.device
    return {
        "role": "round formats" if device.startswith("cuda") else "formats",
        "hidden": layer.hidden,
        "intermediate": layer.intermediate,
        "dtype": layer.dtype,
        "device": device,
        "processor": torch.cuda.get_device_name(device) if device.startswith("cuda") else processor_name(),
        "threads": torch.get_num_threads(),
        "versions": " ".join(f"{name} {version_of(name)}" for name in ("torch", "bitsandbytes")),
    }
