"""Loads the weights of a model folder with transformers, strictly: incomplete or damaged weights are errors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from specgen.core.errors import DeviceError, ModelFileError, SpecgenError
from specgen.core.library_errors import first_line, is_out_of_memory, library_failures
from specgen.core.progress import SILENT, ProgressListener
from specgen.core.results import ModelInfo
from specgen.core.units import format_size
from specgen.loading.format_autotune import FormatTimes
from specgen.loading.memory import free_bytes, needed_bytes, shortage
from specgen.loading.model_config import ModelConfig
from specgen.loading.placement import Placement, choose_placement
from specgen.loading.resolved_model import ResolvedModel
from specgen.loading.start.lean_import import loaded_lean
from specgen.loading.weights_check import check_complete, check_finite
from specgen.models.formats import Float16Linear, Int8Linear, pack_model


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """A model in memory.

    Args:
        model: The `transformers.PreTrainedModel`, in eval mode, no gradients.
        info: What runs, read from the layers.
        notices: For the user, one line each.
    """

    model: Any
    info: ModelInfo
    notices: tuple[str, ...] = ()


def load_weights(
    resolved: ResolvedModel, progress: ProgressListener = SILENT, times: FormatTimes | None = None
) -> LoadedWeights:
    """Loads the weights of a model folder.

    Args:
        resolved: The model.
        progress: Receives the progress of loading.
        times: As in `choose_placement`.

    Raises:
        ModelFileError: The folder is damaged, incomplete or unsafe.
        DeviceError: The device or bitsandbytes is missing; `MemoryShortageError` if it is too small.
        SettingsError: The weight format can't be applied to this checkpoint.
        NumericalError: The weights contain NaN or infinity.
    """
    files, config, shown = resolved.files, resolved.config, resolved.name
    folder = files.path
    placement = choose_placement(resolved.settings, config, from_gguf=files.from_gguf, role=resolved.role, times=times)
    needed = needed_bytes(config, placement.dtype, placement.quant)
    free = free_bytes(placement.device)
    notices: tuple[str, ...] = ()
    if placement.device == "cpu" and free is not None and needed > free:
        # Reported before loading: the Linux kernel may kill a program that uses too much memory, without a message.
        notices = (f"{shown} needs about {format_size(needed)}, but only {format_size(free)} are free",)
    progress.stage(f"loading {resolved.role} {shown}")
    try:
        model, loading = _from_pretrained(folder, placement)
    except library_failures() as error:
        raise _load_error(error, shown, folder, config, placement) from error
    check_complete(loading, folder)
    _refuse_offload(model, shown, needed, placement)
    model.eval()
    model.requires_grad_(False)
    check_finite(model, folder)
    info = _info(model, shown, files.revision, placement, files.from_gguf)
    if placement.packed_dtype is not None:
        info = _pack(model, info, placement)
    return LoadedWeights(model, info, notices)


def _pack(model: Any, info: ModelInfo, placement: Placement) -> ModelInfo:
    """Replaces the linear layers of a model loaded as stored by packed ones; returns its new description."""
    num_bytes = pack_model(model, Int8Linear if placement.packed_dtype == "int8" else Float16Linear)
    return replace(
        info,
        dtype=placement.dtype,
        quant="int8" if placement.packed_dtype == "int8" else "none",
        num_bytes=num_bytes + int(model.get_memory_footprint()),
    )


def _from_pretrained(folder: Path, placement: Placement) -> tuple[Any, dict[str, Any]]:
    import transformers

    auto_config: Any = transformers.AutoConfig
    auto_model: Any = transformers.AutoModelForCausalLM
    options: dict[str, Any] = {"dtype": placement.torch_dtype if placement.packed_dtype is None else "auto"}
    if placement.packed_dtype is None and placement.quant != "none":
        options["quantization_config"] = _quantization(placement)
    if placement.spread:
        options["device_map"] = "auto"
    elif placement.device != "cpu" or "quantization_config" in options:
        options["device_map"] = {"": placement.device}

    def load(attention: str) -> tuple[Any, dict[str, Any]]:
        config = auto_config.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        # A config.json may name flash attention, which the argument of the same name does not override.
        config._attn_implementation = attention
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
        return loaded_lean(lambda: load("sdpa"), placement.device)
    except (ValueError, ImportError) as error:
        # Some architectures have no sdpa; eager is the only other implementation that every machine has.
        if "attention" not in str(error).lower():
            raise
        return loaded_lean(lambda: load("eager"), placement.device)


def _quantization(placement: Placement) -> Any:
    import transformers

    config: Any = transformers.BitsAndBytesConfig
    if placement.quant == "int8":
        # With the default threshold of 6.0, outlier columns are chosen over all rows at once: a later draft token
        # then changes the logits of an earlier one (by up to 0.13), and the output is no longer the target's.
        return config(load_in_8bit=True, llm_int8_threshold=0.0)
    return config(
        load_in_4bit=True,
        bnb_4bit_quant_type=placement.quant,
        bnb_4bit_compute_dtype=placement.torch_dtype,
        bnb_4bit_use_double_quant=False,
    )


def _load_error(error: Exception, shown: str, folder: Path, config: ModelConfig, placement: Placement) -> SpecgenError:
    if is_out_of_memory(error):
        needed = needed_bytes(config, placement.dtype, placement.quant)
        return shortage(shown, placement.device, needed, placement.quant)
    if isinstance(error, ImportError) and config.quant_method:
        return DeviceError(
            f"{shown} is quantized with {config.quant_method}, whose library is missing: {first_line(error)}",
            "install it, or choose a checkpoint that is not quantized",
        )
    return ModelFileError(
        f"{folder} can't be loaded: {first_line(error)}", "its files are damaged, or don't belong together"
    )


def _refuse_offload(model: Any, shown: str, needed: int, placement: Placement) -> None:
    """Refuses layers that were silently placed on the CPU or the disk (F46), where they are 100 times slower."""
    if placement.spread and {"cpu", "disk"} & {str(place) for place in model.hf_device_map.values()}:
        raise shortage(shown, placement.device, needed, placement.quant)


def _info(model: Any, shown: str, revision: str | None, placement: Placement, from_gguf: bool) -> ModelInfo:
    quant, packed_bytes = _weight_format(model)
    remarks = list(placement.remarks)
    if from_gguf:
        remarks.insert(0, "from GGUF")
    if placement.packed_dtype is None and placement.quant != "none" and quant == "none":
        remarks.append(f"not quantized: no layer fits {placement.quant}")
    return ModelInfo(
        name=shown,
        quant=quant,
        dtype=_compute_type(model, placement),
        device=_device_name(model),
        revision=revision,
        num_parameters=int(model.num_parameters()),
        num_bytes=int(model.get_memory_footprint()) + packed_bytes,
        remark="; ".join(remarks),
    )


def _compute_type(model: Any, placement: Placement) -> str:
    """Returns the least precise type of the products: float16 in packed layers, whatever type the embedding has."""
    if placement.packed_dtype == "float16":
        return "float16"
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


def _device_name(model: Any) -> str:
    """Returns `cpu`, `cuda:0`, or `cuda:0-1` for layers on several devices."""
    places = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(places) == 1:
        return places[0]
    return f"{places[0]}-{places[-1].rpartition(':')[2]}"
