"""Sets up CUDA, and chooses between recorded and plain passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from specgen.models.cached_model import CachedModel
from specgen.models.decoder_model import DecoderModel
from specgen.models.fused.support import kinds_of_passes
from specgen.models.gemm_4bit import restore_scales
from specgen.models.static.admission import admission_failure
from specgen.models.static.contract import StaticPass
from specgen.models.static.model import StaticModel
from specgen.models.static.passes import DecoderPass
from specgen.models.static.recorder import CudaRecorder, Recorder, renewed
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


@dataclass(frozen=True, slots=True)
class Recorded:
    """What `recorded` found.

    Args:
        model: The model to use.
        reason: Why it is the given one, if it is.
        unfused_reason: Why its passes don't run on the fused kernels, which have all that it consists of.
    """

    model: CachedModel
    reason: str | None = None
    unfused_reason: str | None = None


def recorded(model: CachedModel, *recorders: Recorder, is_draft: bool = False) -> Recorded:
    """Records the passes of a model if it fits and they give the same logits; on the fused kernels if these do.

    A decoder whose recorded passes fail keeps its plain ones: for `WholePass` transformers' module would have to be
    loaded a second time, next to the decoder's weights.

    Args:
        model: Specgen's decoder or a transformers model, with an empty cache.
        recorders: Record the passes: one for each device, in the order of the layers.
        is_draft: The model drafts; otherwise it verifies.
    """
    if model.switch_length is not None or model.draft_limit is not None:
        return Recorded(model, "its rotary frequencies change with the length of the text")
    reasons: list[str] = []
    for is_fused in _kinds_of_passes(model):
        # A recorder whose recording failed records nothing more.
        own = [renewed(recorder) if reasons else recorder for recorder in recorders]
        static_pass = _static_pass(model, own[:-1], is_fused=is_fused)
        static = StaticModel(static_pass, model.vocab_size, own[-1])
        reason = admission_failure(static, model, is_draft=is_draft)
        if reason is None:
            return Recorded(static, unfused_reason=reasons[0] if reasons else None)
        reasons.append(reason)
        if is_fused:
            restore_scales(model.module)
    if not reasons:
        return Recorded(model, "its passes can't be recorded: a layer has a running state or attends in chunks")
    return Recorded(model, "; ".join(dict.fromkeys(reasons)))


def _kinds_of_passes(model: CachedModel) -> tuple[bool, ...]:
    """Returns what to try, see `kinds_of_passes`; nothing if the model's passes can't be recorded."""
    if isinstance(model, DecoderModel):
        return kinds_of_passes(*((segment.spec, segment.like) for segment in model.decoder.segments))
    whole: Any = model.module
    return (False,) if fits_whole_pass(whole) else ()


def _static_pass(model: CachedModel, earlier: Sequence[Recorder], *, is_fused: bool) -> StaticPass:
    if isinstance(model, DecoderModel):
        decoder = model.decoder
        if earlier:
            return SegmentedPass(decoder, earlier, is_fused=is_fused)
        return DecoderPass(decoder, is_fused=is_fused)
    whole: Any = model.module
    return WholePass(whole)
