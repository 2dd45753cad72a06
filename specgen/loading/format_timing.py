"""Times one layer of a model's own widths in each weight format.

A draft reads one token per pass. A target also verifies drafts: its format is timed by the seconds per token of a round
at an expected acceptance rate, because a format that is fastest at one row may be slowest at six.

On CUDA a host clock around a layer would time Python. There the passes of a round are recorded and replayed through
many layers with weights of their own, as in the draft itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, isfinite
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from specgen.loading.resolved_model import Role
from specgen.models.formats import (
    Float16Linear,
    Int8Linear,
    Nf4Linear,
    PackedLinear,
    has_float16_matmul,
    has_int8_matmul,
)
from specgen.models.packing import PACKED_KINDS, PackedFormat, has_nf4_matmul, packed_linear
from specgen.models.quantized import quantized_linear
from specgen.models.timing import FLUSH_BYTES, Timer, flush_on, timer_for

NUM_SAMPLES, MOST_SAMPLES, MOST_SECONDS = 5, 40, 2.0
"""Samples of each pass: fewest, and most on a busy machine, where no more are begun after this time."""
NUM_AGREEING, AGREEMENT = 3, 1.1
"""So many of the fastest samples of a pass must agree within this factor. Seen while other programs ran: a layer of
0.6 ms took 14 ms in every format, and the format chosen by these times was stored."""
MAX_WEIGHTS = 16_000_000
"""Weights of the timed layer: a wider layer is cut, so that creating it takes less than a second."""
MAX_LAYERS = 96
"""Layers that are timed at once on CUDA."""
ROUND = {1: 3.5, 4: 0.25, 6: 0.25}
"""Passes of a round by their rows: it drafts four tokens. The first pass also reads what the draft did not propose,
which is several tokens after a round of lookup; all others read one token."""
FAILURES = (RuntimeError, NotImplementedError, AttributeError, ValueError, ImportError, OSError)
"""What formats raise that don't run on this machine."""
TARGET_ROWS = (1, 4, 6)
"""Rows of a target's passes: plain decoding, and verifying three and five tokens."""
ACCEPTANCE_RATE = 0.7
"""Expected probability that a drafted token is accepted. The order of the formats hardly depends on it."""
DRAFT_SHARE = 0.25
"""Expected cost of a drafted token, as a share of the target's fastest pass of one row."""


@dataclass(frozen=True, slots=True)
class TimedLayer:
    """The feed-forward layer that is timed, of a draft or of a target.

    Args:
        packs_nf4: Its nf4 runs on our own kernel.
        packed_dtype: Type of the stored weights, if our own kernel runs them as they are.
    """

    hidden: int
    intermediate: int
    dtype: str
    device: str
    role: Role = "draft"
    packs_nf4: bool = False
    packed_dtype: PackedFormat | None = None

    @property
    def timed_intermediate(self) -> int:
        """The width inside the layer, cut to `MAX_WEIGHTS` and to whole blocks of all formats."""
        return max(64, min(self.intermediate, MAX_WEIGHTS // (3 * self.hidden)) // 64 * 64)


@dataclass(frozen=True, slots=True)
class FormatTimes:
    """What was measured.

    Args:
        seconds: By format: of a pass of a draft, or per generated token of a target on a CPU.
        is_steady: The fastest samples agree; otherwise other programs disturbed all of them.
    """

    seconds: dict[str, float]
    is_steady: bool = True


def measure_formats(formats: Sequence[str], layer: TimedLayer) -> FormatTimes:
    """Times a layer in each format. A format whose kernels fail on this machine is left out."""
    if layer.device.startswith("cuda"):
        try:
            timer = timer_for(torch.device(layer.device))
        except RuntimeError:  # the device is full
            return FormatTimes({})
        return FormatTimes(round_seconds(formats, layer, timer))
    rows = TARGET_ROWS if layer.role == "target" else (1,)
    samples = sample_passes(_passes(formats, layer, rows), flush_on(torch.device(layer.device)))
    fastest = {name: [min(times) for times in of_rows] for name, of_rows in samples.items()}
    seconds = token_seconds(fastest) if layer.role == "target" else {name: each[0] for name, each in fastest.items()}
    return FormatTimes(seconds, _is_steady(samples))


def token_seconds(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Returns the seconds per token of a target's rounds, at the draft length that suits each format best.

    With acceptance rate a, a round of k drafted tokens gives (1 - a^(k+1)) / (1 - a) tokens (Leviathan et al. 2023).

    Args:
        seconds: By format: of passes of `TARGET_ROWS`.
    """
    draft = DRAFT_SHARE * min((values[0] for values in seconds.values()), default=0.0)

    def per_token(rows: int, verification: float) -> float:
        num_tokens = (1 - ACCEPTANCE_RATE**rows) / (1 - ACCEPTANCE_RATE)
        return (verification + (rows - 1) * draft) / num_tokens

    return {name: min(map(per_token, TARGET_ROWS, values)) for name, values in seconds.items()}


@torch.inference_mode()
def round_seconds(formats: Sequence[str], layer: TimedLayer, timer: Timer) -> dict[str, float]:
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


def num_timed_layers(layer: TimedLayer) -> int:
    """Returns how many layers hold more than a device's cache, with weights of 4 bits."""
    return min(MAX_LAYERS, ceil(2 * FLUSH_BYTES / (3 * layer.hidden * layer.timed_intermediate)))


Passes = Mapping[str, Sequence[Callable[[], Any]]]
"""By format: passes over one row or more."""


def _passes(formats: Sequence[str], layer: TimedLayer, num_rows: Sequence[int]) -> Passes:
    """Returns passes over each number of rows, which ran once."""
    passes: dict[str, list[Callable[[], Any]]] = {}
    with torch.inference_mode():
        for name in formats:
            try:
                products = [_Products(name, layer)]
                passes[name] = [_pass_through(products, rows) for rows in num_rows]
                for run in passes[name]:
                    run()
            except FAILURES:
                passes.pop(name, None)
    return passes


@torch.inference_mode()
def sample_passes(
    passes: Passes, flush: Callable[[], None], clock: Callable[[], float] = perf_counter
) -> dict[str, list[list[float]]]:
    """Times passes in turn until the fastest samples of each agree, or enough were taken.

    Args:
        flush: Runs before each pass.
        clock: Returns seconds.

    Returns:
        By format, the seconds of all samples of each pass.
    """
    samples: dict[str, list[list[float]]] = {name: [[] for _ in runs] for name, runs in passes.items()}
    began = clock()
    for number in range(MOST_SAMPLES):
        if number >= NUM_SAMPLES and (clock() - began > MOST_SECONDS or _is_steady(samples)):
            break
        for name, runs in passes.items():
            for run, times in zip(runs, samples[name], strict=True):
                flush()
                started = clock()
                run()
                times.append(clock() - started)
    return samples


def _is_steady(samples: Mapping[str, Sequence[Sequence[float]]]) -> bool:
    return all(
        sorted(times)[NUM_AGREEING - 1] <= AGREEMENT * min(times) for of_rows in samples.values() for times in of_rows
    )


class _Products:
    """Products of one layer: `[2 * intermediate, hidden]` and `[hidden, intermediate]` of a format."""

    def __init__(self, name: str, layer: TimedLayer) -> None:
        hidden, intermediate = layer.hidden, layer.timed_intermediate
        self.gate_up_proj = _linear(name, _random(layer.device, 2 * intermediate, hidden) / 30, layer)
        self.down_proj = _linear(name, _random(layer.device, hidden, intermediate) / 30, layer)
        # Packed layers take float32 inputs.
        is_packed = isinstance(self.gate_up_proj, PackedLinear)
        dtype = torch.float32 if is_packed else getattr(torch, layer.dtype)
        self.widths = (hidden, intermediate)
        self.like = torch.empty(0, dtype=dtype, device=layer.device)


def _pass_through(layers: Sequence[_Products], num_rows: int) -> Callable[[], None]:
    """Returns a pass of a few rows through layers."""
    like = layers[0].like
    rows, middle = (_random(like.device, num_rows, width).to(like.dtype) for width in layers[0].widths)

    def run() -> None:
        for layer in layers:
            layer.gate_up_proj(rows)
            layer.down_proj(middle)

    return run


def _random(device: str | torch.device, *shape: int) -> Tensor:
    """Returns random numbers, float32. After a recording that failed, torch's default generator of CUDA may fail."""
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(0), device=device)


def _linear(name: str, weight: Tensor, layer: TimedLayer) -> Any:
    """Returns a linear layer as the loader creates it for a draft."""
    if layer.device == "cpu" and name == "int8" and has_int8_matmul():
        return packed_linear(weight, Int8Linear)
    if layer.packs_nf4 and name == "nf4" and has_nf4_matmul():
        return packed_linear(weight, Nf4Linear)
    if name == "none" and layer.packed_dtype is not None:
        return packed_linear(weight, PACKED_KINDS[layer.packed_dtype])
    if layer.device == "cpu" and name == "none" and layer.dtype == "float16" and has_float16_matmul():
        return packed_linear(weight, Float16Linear)
    weight = weight.to(layer.device, getattr(torch, layer.dtype))
    if name != "none":
        return quantized_linear(weight, None, name)
    num_outputs, num_inputs = weight.shape
    dense = nn.Linear(num_inputs, num_outputs, bias=False, device="meta")
    dense.weight = nn.Parameter(weight, requires_grad=False)
    return dense
