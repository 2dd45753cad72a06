"""Loads the weights of a model folder: with specgen's decoder if it can describe the model, else with transformers."""

from __future__ import annotations

from dataclasses import replace

from specgen.core.errors import library_failures
from specgen.core.progress import SILENT, ProgressListener
from specgen.core.results import ModelInfo
from specgen.core.units import format_size
from specgen.loading.decoder_weights import load_decoder, weight_bytes
from specgen.loading.gpus import in_segments
from specgen.loading.left_over import left_out_notice
from specgen.loading.memory import free_bytes
from specgen.loading.module_sizes import with_module_sizes
from specgen.loading.mtp_folder import without_mtp
from specgen.loading.placement import Placement, choose_placement
from specgen.loading.resolved_model import LoadedModel, ResolvedModel
from specgen.loading.transformers_weights import load_error, load_transformers
from specgen.loading.weight_sizes import needed_bytes
from specgen.models.attention_kernel import kernel_for
from specgen.models.batch_invariance import has_exact_products
from specgen.models.cached_model import CachedModel
from specgen.models.continuation import refuse_broken_continuation
from specgen.models.cuda import prepare_cuda, recorded, recorder_for
from specgen.models.decoder import Decoder
from specgen.models.decoder_model import DecoderModel
from specgen.models.static.admission import not_fused, not_recorded
from specgen.storage.cost_store import CostStore


def load_weights(
    resolved: ResolvedModel,
    num_tokens: int,
    progress: ProgressListener = SILENT,
    times: CostStore | None = None,
) -> LoadedModel:
    """Loads the weights of a model folder.

    Args:
        resolved: The model.
        num_tokens: Logits are cut to this width.
        progress: Receives the progress of loading.
        times: As in `choose_placement`.

    Raises:
        LoadError: The code of its architecture can't verify drafts.
        ModelFileError: The folder is damaged, incomplete or unsafe.
        DeviceError: The device or bitsandbytes is missing; `MemoryShortageError` if it is too small.
        SettingsError: The weight format can't be applied to this checkpoint.
        NumericalError: The weights contain NaN or infinity.
    """
    facts, name = with_module_sizes(resolved.config, resolved.path), resolved.name
    resolved = replace(resolved, config=facts)
    from_gguf = resolved.files.from_gguf
    placement = choose_placement(resolved.settings, facts, from_gguf=from_gguf, role=resolved.role, times=times)
    placement = in_segments(placement, resolved)
    if placement.device.startswith("cuda"):
        prepare_cuda()
    is_draft, free = resolved.role == "draft", free_bytes(placement.device)
    needed = needed_bytes(facts, placement.dtype, placement.quant, placement.device, is_draft=is_draft)
    notices: tuple[str, ...] = ()
    if placement.device == "cpu" and free is not None and needed > free:
        # The Linux kernel kills a program that takes too much, and then it is too late for a message.
        notices = (f"{name} needs about {format_size(needed)}, {format_size(free)} are free: the system may stop it",)
    if facts.unsupported and resolved.settings.backend.name != "transformers":
        # The next stage replaces this one at once, except under -v.
        progress.stage(f"{name} runs on transformers: {facts.unsupported}")
    progress.stage(f"loading {resolved.role} {name}")
    if runs_own_decoder(resolved, placement):
        decoder, info, left_out = _load_own(resolved, placement)
        devices = [segment.device for segment in decoder.segments]
        # Where products are exact, only attention depends on the number of tokens. Drafts don't have to be exact: their
        # rows attend one by one only where the kernel computes them in one call.
        is_exact = has_exact_products(decoder)
        attends_by_row = is_exact and (not is_draft or kernel_for(decoder.spec) is not None)
        model: CachedModel = DecoderModel(decoder, num_tokens, attends_by_row)
        if is_draft and info.quant in ("nf4", "fp4") and isinstance(model, DecoderModel):
            # In bfloat16, the head alone would take as long as all the 4-bit layers below it.
            model.use_nf4_head()
    else:
        from specgen.models.transformers_model import TransformersModel  # it imports transformers, which takes 1 s

        loaded, info, left_out = load_transformers(resolved, placement)
        model = TransformersModel(loaded, num_tokens)
        refuse_broken_continuation(model, name)
        # transformers' own hooks move tensors between devices, which can't be recorded.
        devices = [] if placement.spread else [model.device]
    if left_out:
        notices += left_out_notice(without_mtp(left_out, resolved), resolved.path)
    recorders = [recorder for device in devices if (recorder := recorder_for(device)) is not None]
    if recorders:
        found = recorded(model, *recorders, is_draft=is_draft)
        model = found.model
        if found.reason is not None:
            notices += (not_recorded(name, found.reason),)
        elif found.unfused_reason is not None:
            notices += (not_fused(name, found.unfused_reason),)
    return LoadedModel(model, _with_remarks(info, resolved, placement), notices)


def runs_own_decoder(resolved: ResolvedModel, placement: Placement) -> bool:
    """Returns whether specgen's decoder runs a model."""
    return resolved.fits_own_decoder and (not placement.spread or bool(placement.segments))


def load_own_decoder(resolved: ResolvedModel, placement: Placement) -> tuple[Decoder, list[str]]:
    """Loads specgen's decoder; see `load_decoder` for what it returns, and `load_weights` for the errors."""
    spec = resolved.config.decoder
    assert spec is not None, "the caller checks it"
    try:
        return load_decoder(
            resolved.path, resolved.config.weight_files, spec, placement, is_draft=resolved.role == "draft"
        )
    except library_failures() as error:
        raise load_error(error, resolved.name, resolved.path, resolved.config, placement) from error


def _load_own(resolved: ResolvedModel, placement: Placement) -> tuple[Decoder, ModelInfo, list[str]]:
    decoder, left_out = load_own_decoder(resolved, placement)
    info = ModelInfo(
        name=resolved.name,
        quant=placement.quant,
        dtype=placement.dtype,
        device=placement.device_name,
        num_parameters=resolved.config.num_parameters,
        num_bytes=weight_bytes(decoder),
        arithmetic=placement.arithmetic,
    )
    return decoder, info, left_out


def _with_remarks(info: ModelInfo, resolved: ResolvedModel, placement: Placement) -> ModelInfo:
    remarks = ["from GGUF"] if resolved.files.from_gguf else []
    remarks += placement.remarks
    remarks += [info.remark] if info.remark else []
    if placement.packed_dtype is None and placement.quant != "none" and info.quant == "none":
        remarks.append(f"{placement.quant}: it has no layer that can be quantized")
    return replace(info, revision=resolved.files.revision, remark="; ".join(remarks))
