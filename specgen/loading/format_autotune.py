"""Chooses the weight format that a model runs fastest in on this machine, by measurement.

Processor flags say which kernels exist, not which of them is fastest at one row: that depends on memory bandwidth,
threads and library versions. So formats are timed once, see `format_timing`, and the times are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING

import torch

from specgen.core.machine import processor_name, version_of
from specgen.models.kernels import KERNELS_VERSION

if TYPE_CHECKING:
    from specgen.loading.format_timing import FormatTimes, TimedLayer
    from specgen.storage.cost_store import CostKey, CostStore

WORTHWHILE = 0.95
"""A format must take less than this share of a more exact one's time to be worth its rounding."""
EXACTNESS = ("none", "int8", "nf4")
"""Formats, the most exact one first."""
LEAST_MEASURED = 20_000_000
"""Parameters; in a smaller draft, matrix products don't decide the speed."""


_COST_ROLES = {"draft": "formats", "target": "target formats"}


def fastest_format(
    formats: Sequence[str],
    layer: TimedLayer,
    measure: Callable[[Sequence[str], TimedLayer], FormatTimes],
    times: CostStore | None = None,
) -> tuple[str, str]:
    """Returns the fastest weight format of a model, and the reason; the reason is empty if there is no choice.

    Times of a busy machine are used, but not stored.

    Args:
        formats: What this machine can run, of `none`, `int8` and `nf4`.
        measure: Times them, where that was not done yet.
        times: Stored measurements; None: measure.
    """
    if len(formats) < 2:
        return "none", ""
    key = _cost_key(layer)
    stored = {} if times is None else times.read(key)
    if set(formats) <= stored.keys():
        return decide({name: stored[name] for name in formats})
    measured = measure(formats, layer)
    if measured.is_steady and times is not None:
        times.write(key, measured.seconds, list(measured.seconds))
    quant, reason = decide(measured.seconds)
    return quant, reason if measured.is_steady else f"{reason}; other programs disturbed it"


def decide(seconds: Mapping[str, float]) -> tuple[str, str]:
    """Returns the fastest format, a more exact one unless it is clearly faster, and the reason."""
    if not seconds:
        return "none", "not quantized: no weight format could be timed here"
    fastest = min(seconds.values())
    chosen = next(name for name in EXACTNESS if WORTHWHILE * seconds.get(name, inf) <= fastest)
    digits = 2 if min(seconds.values()) >= 1e-4 else 4
    ranked = sorted(seconds, key=lambda name: seconds[name])
    figures = ", ".join(f"{name} {1000 * seconds[name]:.{digits}f}" for name in ranked)
    return chosen, f"{chosen} by measurement, ms per layer: {figures}"


def _cost_key(layer: TimedLayer) -> CostKey:
    device = layer.device
    return {
        "role": "round formats" if device.startswith("cuda") else _COST_ROLES[layer.role],
        "hidden": layer.hidden,
        "intermediate": layer.intermediate,
        "dtype": layer.packed_dtype or layer.dtype,
        "device": device,
        "processor": torch.cuda.get_device_name(device) if device.startswith("cuda") else processor_name(),
        "threads": torch.get_num_threads(),
        "kernels": KERNELS_VERSION if device == "cpu" else 0,
        "packs_nf4": layer.packs_nf4,
        "versions": " ".join(f"{name} {version_of(name)}" for name in ("torch", "bitsandbytes", "llvmlite")),
    }
