"""Settings of CUDA that every pass needs, and the choice between recorded and plain passes."""

from __future__ import annotations

from typing import Any

import torch

from specgen.models.cached_model import CachedModel
from specgen.models.decoder_model import DecoderModel
from specgen.models.draft_head import DraftHeadModel, DraftHeadParts
from specgen.models.static.admission import admission_failure
from specgen.models.static.draft_head import StaticDraftHead
from specgen.models.static.model import StaticModel
from specgen.models.static.passes import DecoderPass, StaticPass, WholePass, fits_whole_pass
from specgen.models.static.recorder import CudaRecorder, Recorder


def prepare_cuda() -> None:
    """Sets what torch must not choose by itself on CUDA. To be called before the first pass.

    cuDNN's attention is off: on Hopper it builds a plan for every new key length (25 to 40 ms a pass), and on B200 it
    gives wrong text for models with few key-value heads (pytorch#193893). TF32 is off: float32 stays exact.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def recorded(model: CachedModel, recorder: Recorder | None = None) -> tuple[CachedModel, str | None]:
    """Returns the model with recorded passes, if it fits and they give the same logits.

    Args:
        model: Specgen's decoder or a transformers model, with an empty cache.
        recorder: Records the passes; None: CUDA graphs.

    Returns:
        The model to use, and why it is the given one, if it is.
    """
    static_pass = _static_pass(model)
    if static_pass is None:
        return model, "its passes can't be recorded: a layer has a window or a running state"
    static = StaticModel(static_pass, model.vocab_size, recorder or CudaRecorder(model.device))
    failure = admission_failure(static, model)
    return (static, None) if failure is None else (model, failure)


def draft_head_model(parts: DraftHeadParts, target: CachedModel) -> DraftHeadModel:
    """Returns a draft head whose passes are recorded if its target's are."""
    return StaticDraftHead(parts, target.recorder) if isinstance(target, StaticModel) else DraftHeadModel(parts)


def _static_pass(model: CachedModel) -> StaticPass | None:
    if isinstance(model, DecoderModel):
        return DecoderPass(model.decoder)
    whole: Any = model.module
    return WholePass(whole) if fits_whole_pass(whole) else None
