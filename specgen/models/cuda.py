"""Sets up CUDA, and chooses between recorded and plain passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from specgen.models.cached_model import CachedModel
from specgen.models.decoder_model import DecoderModel
from specgen.models.static.admission import admission_failure
from specgen.models.static.contract import StaticPass
from specgen.models.static.model import StaticModel
from specgen.models.static.passes import DecoderPass
from specgen.models.static.recorder import CudaRecorder, Recorder
from specgen.models.static.segments import SegmentedPass
from specgen.models.static.whole_pass import WholePass, fits_whole_pass


def prepare_cuda() -> None:
    """Sets what torch must not choose by itself on CUDA. To be called before the first pass.

    cuDNN's attention is off. torch 2.11 and later prefer it on Hopper and on B200, where it builds a plan for every new
    shape: 0.44 s on a B200 (modelscope/FunASR#3704), and each pass over a longer text is a new shape. On B200 it also
    gives wrong text for models with few key-value heads (pytorch/pytorch#193893). TF32 is off: float32 stays exact.
    Products of 16-bit weights add in float32. By default cuBLAS may split a sum and add its parts in 16 bits, for some
    numbers of rows, which near ties of 4 units in the last place don't allow for.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cudnn.allow_tf32 = False
    matmul = torch.backends.cuda.matmul
    matmul.allow_tf32 = matmul.allow_bf16_reduced_precision_reduction = False
    matmul.allow_fp16_reduced_precision_reduction = False


def recorder_for(device: torch.device) -> Recorder | None:
    """Returns what records passes on a device; None where a replay would not be faster than the calls."""
    return CudaRecorder(device) if device.type == "cuda" else None


def recorded(model: CachedModel, *recorders: Recorder, is_draft: bool = False) -> tuple[CachedModel, str | None]:
    """Returns the model with recorded passes, if it fits and they give the same logits.

    A decoder whose recorded passes fail keeps its plain ones: for `WholePass` transformers' module would have to be
    loaded a second time, next to the decoder's weights.

    Args:
        model: Specgen's decoder or a transformers model, with an empty cache.
        recorders: Record the passes: one for each device, in the order of the layers.
        is_draft: The model drafts; otherwise it verifies.

    Returns:
        The model to use, and why it is the given one, if it is.
    """
    if model.switch_length is not None or model.draft_limit is not None:
        return model, "its rotary frequencies change with the length of the text"
    static_pass = _static_pass(model, recorders[:-1])
    if static_pass is None:
        return model, "its passes can't be recorded: a layer has a running state or attends in chunks"
    static = StaticModel(static_pass, model.vocab_size, recorders[-1])
    failure = admission_failure(static, model, is_draft=is_draft)
    return (static, None) if failure is None else (model, failure)


def _static_pass(model: CachedModel, earlier: Sequence[Recorder]) -> StaticPass | None:
    if isinstance(model, DecoderModel):
        decoder = model.decoder
        return SegmentedPass(decoder, earlier) if earlier else DecoderPass(decoder)
    whole: Any = model.module
    return WholePass(whole) if fits_whole_pass(whole) else None
