"""Which weight format a draft is fastest in, on this machine: its products timed once, then remembered.

Flags of a processor say which kernels exist, not which of them is fastest at one row: that differs with the memory,
the threads and the library's version. So one layer of the draft's own widths is timed in each format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any

from specgen.core.machine import processor_name, version_of
from specgen.storage.cost_store import CostStore, Facts

NUM_SAMPLES = 5
MAX_WEIGHTS = 16_000_000
"""Of the timed layer: a wider one is cut, so that making it takes no second."""
FLUSH_BYTES = 96 * 1024 * 1024
"""Written before each timed pass: a whole model's weights are never in the processor's cache, a lone layer's are."""
WORTHWHILE = 0.95
"""Share of the unquantized time from which on a format is worth its rounding."""
LEAST_MEASURED = 20_000_000
"""Parameters from which on the products, and not what is around them, decide about the speed of a draft."""

Measure = Callable[[Sequence[str], tuple[int, int], str, str], dict[str, float]]
"""Formats, widths, compute type and device: seconds of one row through a layer, by format."""


def fastest_format(
    formats: Sequence[str],
    widths: tuple[int, int],
    dtype: str,
    device: str,
    *,
    store: CostStore | None = None,
    measure: Measure | None = None,
) -> tuple[str, str]:
    """The fastest format of a draft's weights.

    Args:
        formats: What this machine can run, of `none`, `int8` and `nf4`.
        widths: Hidden and intermediate size.
        dtype: Compute type of unquantized weights.
        device: Where it runs.
        store: Where measurements are remembered; default: the user's cache.
        measure: For tests.

    Returns:
        The format, and why; the reason is empty where there was nothing to choose.
    """
    if len(formats) < 2:
        return "none", ""
    store, facts = store or CostStore(), _facts(widths, dtype, device)
    seconds = store.read(facts)
    if not set(formats) <= seconds.keys():
        seconds = (measure or measured_seconds)(formats, widths, dtype, device)
        store.write(facts, seconds, seconds)
    return decide({name: seconds[name] for name in formats if name in seconds})


def decide(seconds: Mapping[str, float]) -> tuple[str, str]:
    """The fastest format, `none` unless another one is clearly faster, and the reason in words."""
    if not seconds:
        return "none", "not quantized: no weight format could be timed here"
    chosen = min(seconds, key=lambda name: seconds[name])
    if "none" in seconds and seconds[chosen] > WORTHWHILE * seconds["none"]:
        chosen = "none"
    figures = ", ".join(f"{name} {1000 * seconds[name]:.2f}" for name in sorted(seconds, key=lambda n: seconds[n]))
    return chosen, f"{chosen} by measurement, ms a layer: {figures}"


def measured_seconds(formats: Sequence[str], widths: tuple[int, int], dtype: str, device: str) -> dict[str, float]:
    """Seconds of one row through the products of a feed-forward layer, by format: the least of several, in turn.

    A format whose kernels fail here is left out.
    """
    import torch

    hidden, inner = widths
    inner = max(64, min(inner, MAX_WEIGHTS // (3 * hidden)) // 64 * 64)
    passes: dict[str, Callable[[], Any]] = {}
    with torch.inference_mode():
        for name in formats:
            try:
                passes[name] = _layer(name, hidden, inner, dtype, device)
                passes[name]()
            except (RuntimeError, NotImplementedError, AttributeError, ValueError, ImportError, OSError):
                passes.pop(name, None)
        flushed = torch.zeros(FLUSH_BYTES // 4, device=device)
        samples: dict[str, list[float]] = {name: [] for name in passes}
        for _ in range(NUM_SAMPLES):
            for name, run in passes.items():
                flushed.add_(1.0)
                _wait(device)
                started = perf_counter()
                run()
                _wait(device)
                samples[name].append(perf_counter() - started)
    return {name: min(values) for name, values in samples.items()}


def _layer(name: str, hidden: int, inner: int, dtype: str, device: str) -> Callable[[], Any]:
    """One row through [2 inner, hidden] and [hidden, inner] of a format."""
    import torch

    wide = _linear(name, torch.randn(2 * inner, hidden) / 30, dtype, device)
    narrow = _linear(name, torch.randn(hidden, inner) / 30, dtype, device)
    # The narrow layers take float32 and hold their weights in a form of their own.
    compute = getattr(torch, dtype) if hasattr(wide, "weight") else torch.float32
    row, middle = (torch.randn(1, width, dtype=compute, device=device) for width in (hidden, inner))
    return lambda: (wide(row), narrow(middle))


def _linear(name: str, weight: Any, dtype: str, device: str) -> Any:
    """A linear layer as the loader makes it for a draft."""
    import torch

    from specgen.models.formats import Float16Linear, Int8Linear, converted, has_float16_matmul, has_int8_matmul

    if device == "cpu" and name == "int8" and has_int8_matmul():
        return converted(weight, Int8Linear)
    if device == "cpu" and name == "none" and dtype == "float16" and has_float16_matmul():
        return converted(weight, Float16Linear)
    num_outputs, num_inputs = weight.shape
    compute = getattr(torch, dtype)
    if name == "none":
        dense = torch.nn.Linear(num_inputs, num_outputs, bias=False, dtype=compute, device=device)
        dense.weight.data.copy_(weight)
        return dense
    import bitsandbytes

    layers: Any = bitsandbytes.nn
    if name == "int8":
        layer = layers.Linear8bitLt(num_inputs, num_outputs, bias=False, has_fp16_weights=False, threshold=0.0)
        layer.weight = layers.Int8Params(weight.to(compute), requires_grad=False, has_fp16_weights=False)
    else:
        layer = layers.Linear4bit(num_inputs, num_outputs, bias=False, compute_dtype=compute, quant_type="nf4")
        layer.weight = layers.Params4bit(
            weight.to(compute), requires_grad=False, quant_type="nf4", compress_statistics=False
        )
    return layer.to(device).eval()


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


def _facts(widths: tuple[int, int], dtype: str, device: str) -> Facts:
    import torch

    return {
        "role": "formats",
        "hidden": widths[0],
        "intermediate": widths[1],
        "dtype": dtype,
        "device": device,
        "processor": torch.cuda.get_device_name(device) if device.startswith("cuda") else processor_name(),
        "threads": torch.get_num_threads(),
        "versions": " ".join(f"{name} {version_of(name)}" for name in ("torch", "bitsandbytes")),
    }
