"""Loads a model with transformers: what the decoder of specgen can't describe, and quantized checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from specgen.core.errors import (
    DeviceError,
    ModelFileError,
    SpecgenError,
    first_line,
    is_out_of_memory,
    library_failures,
)
from specgen.core.results import ModelInfo
from specgen.loading.left_over import default_sizes
from specgen.loading.memory import shortage
from specgen.loading.module_sizes import dense_layers
from specgen.loading.placement import Placement
from specgen.loading.readable_folder import readable_folder
from specgen.loading.resolved_model import ModelConfig, ResolvedModel
from specgen.loading.transformers_checks import check_complete, check_finite
from specgen.loading.weight_sizes import needed_bytes
from specgen.models.formats import PackedLinear
from specgen.models.packing import PACKED_KINDS, pack_model
from specgen.models.quantized import fits_cpu_kernel, has_nf4_kernel

NEARLY_ALL = 0.95
"""Share of the weights in a format from which the others are not mentioned."""


def load_transformers(resolved: ResolvedModel, placement: Placement) -> tuple[Any, ModelInfo, list[str]]:
    """Loads a transformers model, in eval mode and without gradients.

    Returns:
        The `transformers.PreTrainedModel`, what really runs, read off its layers, and the tensors of the files that it
        does without: see `specgen.loading.left_over`.

    Raises:
        ModelFileError: The folder is damaged, incomplete or unsafe.
        DeviceError: The library of a quantized checkpoint is missing; `MemoryShortageError` if memory is short.
        NumericalError: The weights contain NaN or infinity.
    """
    folder, facts = resolved.path, resolved.config
    try:
        with readable_folder(folder) as readable:
            model, loading = _from_pretrained(readable, placement)
    except library_failures() as error:
        raise load_error(error, resolved.name, folder, facts, placement) from error
    left_out = check_complete(loading, folder, model.state_dict().keys(), default_sizes(facts.values, model.config))
    needed = needed_bytes(facts, placement.dtype, placement.quant, placement.device)
    _refuse_offload(model, resolved.name, needed, placement)
    model.eval()
    model.requires_grad_(False)
    check_finite(model, folder)
    packed_bytes = 0
    quant, scales_bytes = _weight_format(model)
    if placement.packed_dtype is not None:
        packed_bytes = pack_model(model, PACKED_KINDS[placement.packed_dtype])
        quant = placement.quant
    info = ModelInfo(
        name=resolved.name,
        quant=quant,
        dtype=_compute_type(model, placement),
        device=_device_name(model),
        num_parameters=facts.num_parameters,
        num_bytes=int(model.get_memory_footprint()) + scales_bytes + packed_bytes,
        remark=_format_remark(model, facts, placement),
        arithmetic=placement.arithmetic,
    )
    return model, info, left_out


def _from_pretrained(folder: Path, placement: Placement) -> tuple[Any, dict[str, Any]]:
    import transformers

    auto_config: Any = transformers.AutoConfig
    auto_model: Any = transformers.AutoModelForCausalLM
    options: dict[str, Any] = {"dtype": placement.torch_dtype if placement.packed_dtype is None else "auto"}
    if placement.packed_dtype is None and placement.quant != "none":
        options["quantization_config"] = _quantization(placement, folder)
    if placement.spread:
        options["device_map"] = "auto"
    elif placement.device != "cpu" or "quantization_config" in options:
        options["device_map"] = {"": placement.device}

    def load(attention: str) -> tuple[Any, dict[str, Any]]:
        # A config.json may name flash attention, which the model's argument of the same name does not override.
        config = auto_config.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, attn_implementation=attention
        )
        model, loading = auto_model.from_pretrained(
            folder,
            config=config,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            attn_implementation=attention,
            ignore_mismatched_sizes=True,  # check_complete refuses them, with their names
            **options,
        )
        return model, loading

    try:
        return load("sdpa")
    except (ValueError, ImportError) as error:
        # Some architectures have no sdpa; eager is the only other implementation that every machine has.
        if "attention" not in str(error).lower():
            raise
        return load("eager")


def _quantization(placement: Placement, folder: Path) -> Any:
    import transformers

    config: Any = transformers.BitsAndBytesConfig
    if placement.quant == "int8":
        # With the default threshold of 6.0, outlier columns are chosen over all rows at once: a later draft token
        # then changes the logits of an earlier one (by up to 0.13), and the output is no longer the target's.
        return config(load_in_8bit=True, llm_int8_threshold=0.0)
    has_kernel = placement.device == "cpu" and has_nf4_kernel(torch.device("cpu"))
    return config(
        load_in_4bit=True,
        llm_int8_skip_modules=(dense_layers(folder) or None) if has_kernel else None,
        bnb_4bit_quant_type=placement.quant,
        bnb_4bit_compute_dtype=placement.torch_dtype,
        bnb_4bit_use_double_quant=False,
    )


def load_error(error: Exception, shown: str, folder: Path, config: ModelConfig, placement: Placement) -> SpecgenError:
    """Translates a library's failure to load a model."""
    if is_out_of_memory(error):
        needed = needed_bytes(config, placement.dtype, placement.quant, placement.device)
        return shortage(shown, placement.device, needed, placement.quant)
    if isinstance(error, ImportError) and config.quant_method:
        return DeviceError(
            f"{shown} is quantized with {config.quant_method}, whose library is missing: {first_line(error)}",
            "install it, or choose a checkpoint that is not quantized",
        )
    reason, hint = first_line(error), "its files are damaged, or don't belong together"
    if isinstance(error, KeyError) and config.unsupported and "model_type" not in config.unsupported:
        reason, hint = f"{config.unsupported} in config.json", "upgrade transformers, or correct it"
    return ModelFileError(f"{folder} can't be loaded: {reason}", hint)


def _refuse_offload(model: Any, shown: str, needed: int, placement: Placement) -> None:
    """Refuses layers that were silently placed on the CPU or the disk (F46), where they are 100 times slower."""
    if placement.spread and {"cpu", "disk"} & {str(place) for place in model.hf_device_map.values()}:
        raise shortage(shown, placement.device, needed, placement.quant)


def _compute_type(model: Any, placement: Placement) -> str:
    """Returns the least precise type of the products: float16 in packed layers, whatever type the embedding has."""
    if placement.packed_dtype is not None:
        return placement.dtype
    return str(model.get_input_embeddings().weight.dtype).removeprefix("torch.")


def _weight_format(model: Any) -> tuple[str, int]:
    """Returns the weight format of the layers, and the bytes of their scales."""
    quant, extra = "none", 0
    for module in model.modules():
        kind = type(module).__name__
        if kind == "Linear4bit":
            state = getattr(module.weight, "quant_state", None)
            quant = str(getattr(module.weight, "quant_type", "4bit"))
            extra += 0 if state is None else state.absmax.nbytes
        elif kind == "Linear8bitLt":
            quant = "int8"
            scales = getattr(module.weight, "SCB", None)
            extra += 0 if scales is None else scales.nbytes
    # transformers ignores unknown methods, and unpacks some; then the quantizer or its config is missing.
    quantizer = getattr(model, "hf_quantizer", None)
    if quant == "none" and quantizer is not None and hasattr(model.config, "quantization_config"):
        method = quantizer.quantization_config.quant_method
        quant = str(getattr(method, "value", method))
    return quant, extra


def _format_remark(model: Any, config: ModelConfig, placement: Placement) -> str:
    """Returns which share of the weights is in the chosen format, unless it is nearly all; the embedding is apart."""
    if config.quant_method is not None:
        is_unpacked = config.is_unpacked(placement.device)
        return f"{config.quant_method} weights, unpacked to {placement.dtype} on a CPU" if is_unpacked else ""
    chosen = placement.packed_dtype or placement.quant
    apart, num_chosen, num_others = {id(model.get_input_embeddings().weight)}, 0, 0
    kind = PackedLinear if placement.packed_dtype is None else PACKED_KINDS[placement.packed_dtype]
    for module in model.modules():
        if isinstance(module, kind) or type(module).__name__ in ("Linear4bit", "Linear8bitLt"):
            num_chosen += module.in_features * module.out_features
            apart.add(id(getattr(module, "weight", None)))
        elif isinstance(module, PackedLinear):
            num_others += module.in_features * module.out_features
    wide = "float32" if placement.packed_dtype is not None else placement.dtype
    wide = f"int8 or {wide}" if num_others else wide
    num_others += sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in apart)
    share = num_chosen / max(num_chosen + num_others, 1)
    if chosen == "none" or num_chosen == 0:
        return ""
    rest = f"{100 * share:.0f} % of the weights in {chosen}, the rest in {wide}" if share < NEARLY_ALL else ""
    unfit = _unfit_kinds(model) if chosen in ("nf4", "fp4") else []
    return "; ".join(
        filter(None, (rest, f"{', '.join(unfit)} in {wide}: no whole blocks of {chosen}" if unfit else ""))
    )


def _unfit_kinds(model: Any) -> list[str]:
    """Returns names of layers that stayed dense because the 4-bit kernel can't run them."""
    head = model.get_output_embeddings()
    dense = [(name, part) for name, part in model.named_modules() if type(part) is nn.Linear and part is not head]
    return sorted({name.rpartition(".")[2] for name, part in dense if not fits_cpu_kernel(part.weight)})


def _device_name(model: Any) -> str:
    """Returns `cpu`, `cuda:0`, or `cuda:0-1` for layers on several devices."""
    places = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(places) == 1:
        return places[0]
    return f"{places[0]}-{places[-1].rpartition(':')[2]}"
