"""Sets up CUDA, and chooses between recorded and plain passes: recorded ones must compute what plain ones do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from specgen.core.errors import MemoryShortageError
from specgen.engine.near_ties import gap_between
from specgen.models.cached_model import CachedModel
from specgen.models.decoder_model import DecoderModel
from specgen.models.static.contract import StaticPass
from specgen.models.static.model import StaticModel
from specgen.models.static.passes import DecoderPass
from specgen.models.static.recorder import CudaRecorder, Recorder
from specgen.models.static.segments import SegmentedPass
from specgen.models.static.whole_pass import WholePass, fits_whole_pass, short_windows

PROBED_ROWS = (1, 3, 5, 8)
NUM_PROMPT = 12
PROBED_WINDOW = 8
"""Window of transformers' layers while their passes are compared: the text is longer, so tokens leave it."""
NUM_RUNS = 3
"""Runs of each probe: the first one is plain, the second is recorded, the third replays."""
TOLERANCES = {torch.float32: 1e-4}
"""Largest relative distance of the logits by compute type.

It is the distance after all layers. Two layers alone should stay within 1e-5 in float32 and 1e-2 in bfloat16, but each
layer passes its rounding on to the next ones and adds its own.
"""
DEFAULT_TOLERANCE = 3e-2


def prepare_cuda() -> None:
    """Sets what torch must not choose by itself on CUDA. To be called before the first pass.

    cuDNN's attention is off: on Hopper it builds a plan for every new key length (25 to 40 ms a pass), and on B200 it
    gives wrong text for models with few key-value heads (pytorch#193893). TF32 is off: float32 stays exact.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def recorder_for(device: torch.device) -> Recorder | None:
    """Returns what records passes on a device; None where a replay would not be faster than the calls."""
    return CudaRecorder(device) if device.type == "cuda" else None


def recorded(model: CachedModel, *recorders: Recorder) -> tuple[CachedModel, str | None]:
    """Returns the model with recorded passes, if it fits and they give the same logits.

    A decoder whose recorded passes fail keeps its plain ones: for `WholePass` transformers' module would have to be
    loaded a second time, next to the decoder's weights.

    Args:
        model: Specgen's decoder or a transformers model, with an empty cache.
        recorders: Record the passes: one for each device, in the order of the layers.

    Returns:
        The model to use, and why it is the given one, if it is.
    """
    if model.switch_length is not None or model.draft_limit is not None:
        return model, "its rotary frequencies change with the length of the text"
    static_pass = _static_pass(model, recorders[:-1])
    if static_pass is None:
        return model, "its passes can't be recorded: a layer has a running state or attends in chunks"
    static = StaticModel(static_pass, model.vocab_size, recorders[-1])
    failure = admission_failure(static, model)
    return (static, None) if failure is None else (model, failure)


def _static_pass(model: CachedModel, earlier: Sequence[Recorder]) -> StaticPass | None:
    if isinstance(model, DecoderModel):
        decoder = model.decoder
        return SegmentedPass(decoder, earlier) if earlier else DecoderPass(decoder)
    whole: Any = model.module
    return WholePass(whole) if fits_whole_pass(whole) else None


@torch.inference_mode()
def admission_failure(static: StaticModel, plain: CachedModel) -> str | None:
    """Compares the logits and likeliest tokens of a prompt and of passes over a few rows. Empties both caches.

    Returns:
        Why the recorded passes must not be used; None if they may.
    """
    step = max(static.vocab_size // (NUM_PROMPT + sum(PROBED_ROWS) + 1), 1)
    ids = [(step * (index + 1)) % static.vocab_size for index in range(NUM_PROMPT + max(PROBED_ROWS))]
    parameter = next(iter(static.module.parameters()), None)
    dtype = torch.float32 if parameter is None else parameter.dtype
    try:
        with _filled_windows(static, plain):
            for rows in PROBED_ROWS:
                text = ids[: NUM_PROMPT + rows]
                expected = _probe(plain, text, rows)
                for _ in range(NUM_RUNS):
                    if (found := difference(_probe(static, text, rows), expected, dtype)) is not None:
                        return f"{found} over {rows} rows"
    except Exception as error:  # noqa: BLE001 - after any failure, the plain passes may still work
        static.reset()
        if isinstance(error, MemoryShortageError):
            return "too little memory for a cache of fixed size"
        return f"recording failed: {str(error).partition(chr(10))[0] or type(error).__name__}"
    finally:
        plain.reset()
    static.rewind(0)
    return static.take_failure()


@contextmanager
def _filled_windows(static: StaticModel, plain: CachedModel) -> Iterator[None]:
    """Shortens the windows of transformers' layers. Specgen's decoder has its windows from one place for all passes.

    Raises:
        RuntimeError: They can't be shortened, so a short text shows nothing about them.
    """
    static_pass = static.static_pass
    if not isinstance(static_pass, WholePass) or not static_pass.has_window:
        yield
        return
    with short_windows(static_pass.model.config, PROBED_WINDOW) as are_short:
        if not are_short:
            raise RuntimeError("its windows can't be compared in a short text")
        plain.reset()  # its cache was made for the long ones
        yield
    static.reset()


def difference(found: Tensor, expected: Tensor, dtype: torch.dtype) -> str | None:
    """Returns how logits of recorded passes differ from those of plain ones beyond rounding; None if they don't.

    Args:
        found: `[rows, vocab]`, of recorded passes.
        expected: `[rows, vocab]`, of plain ones.
        dtype: The compute type. An integer type is that of packed weights, which compute in bfloat16.
    """
    distance = relative_distance(found, expected)
    if not distance <= TOLERANCES.get(dtype, DEFAULT_TOLERANCE):
        return f"recorded passes differ from plain ones by {distance:.1e}"
    compute_type = dtype if dtype.is_floating_point else torch.bfloat16
    tops = torch.stack([expected.argmax(-1), found.argmax(-1)], -1)
    for own, other in expected.gather(-1, tops).tolist():
        gap = gap_between(own, other, compute_type)
        if not gap.is_near_tie:
            return f"recorded passes choose another token than plain ones, with logits {gap.distance:.1e} apart,"
    return None


def relative_distance(found: Tensor, expected: Tensor) -> float:
    """Returns the norm of the difference over the norm of what is expected; NaN if a value is NaN."""
    return float((found - expected).norm() / expected.norm().clamp(min=torch.finfo(expected.dtype).tiny))


def _probe(model: CachedModel, text: list[int], num_rows: int) -> Tensor:
    model.rewind(0)
    model.feed(text[:-num_rows])
    return model.logits(text, num_rows).clone()
