"""Writes a model folder from a GGUF file: config, weights and tokenizer. Imports torch."""

from __future__ import annotations

import gc
import importlib
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from specgen.core.errors import (
    ModelFileError,
    NumericalError,
    PairError,
    first_line,
    is_out_of_memory,
    library_failures,
)
from specgen.core.model_files import read_json
from specgen.core.progress import ProgressListener
from specgen.loading.config_check import check_folder
from specgen.loading.config_reader import UnsupportedConfig
from specgen.loading.gguf.absent_ids import copy_whole
from specgen.loading.gguf.contents import read_contents
from specgen.loading.gguf.metadata import GgufHeader
from specgen.loading.gguf.parts import first_part
from specgen.loading.gguf.rotary import carry_base_over, refuse_lost_scaling
from specgen.loading.gguf.tokenizer import check_tokenizer, save_end_ids, write_tokenizer
from specgen.loading.gguf.unpack import can_unpack, unpack
from specgen.loading.memory import shortage
from specgen.loading.tensor_files import TensorFiles
from specgen.loading.transformers_checks import check_complete, check_finite
from specgen.models.tensor_names import HEAD, tensor_shapes
from specgen.storage.folders import disk_error, is_disk_full
from specgen.text.tokenizer import check_num_rows, load_tokenizer
from specgen.text.vocabulary import table_size


def written_type(header: GgufHeader) -> torch.dtype:
    """Returns the type of the written weights: that of the file if its weights are floats, as of other checkpoints."""
    return {"F32": torch.float32, "F16": torch.float16}.get(header.quantization, torch.bfloat16)


def check_convertible(header: GgufHeader, path: Path) -> None:
    """Refuses a file that can't be converted.

    Raises:
        ModelFileError: It is a part of a split model, its tokenizer is missing or unknown, or neither specgen nor the
            installed transformers knows its architecture.
    """
    _check_single(header, path)
    check_tokenizer(header, path)
    if can_unpack(header.architecture):
        return
    known: set[str] = set()
    # Their place depends on the version of transformers; if neither is there, the conversion itself decides.
    for module, name in (
        ("transformers.modeling_gguf_pytorch_utils", "GGUF_SUPPORTED_ARCHITECTURES"),
        ("transformers.integrations.gguf", "GGUF_CONFIG_ARCHS"),
    ):
        with suppress(ImportError):
            known |= set(getattr(importlib.import_module(module), name, ()))
    if known and header.architecture not in known:
        raise ModelFileError(
            f"{path}: the installed transformers can't convert the GGUF architecture {header.architecture!r}",
            "upgrade transformers, or use a folder with safetensors",
        )


def _check_single(header: GgufHeader, path: Path) -> None:
    """Refuses a part of a split model: only llama.cpp reads several files."""
    if header.num_parts > 1:
        first = (first_part(path) or path).name
        raise ModelFileError(
            f"{path} is one of {header.num_parts} parts of a model, which only llama.cpp reads",
            f"use --backend llama.cpp (pip install 'specgen-cli[gguf]'), or join them with the program from "
            f"github.com/ggml-org/llama.cpp/releases: llama-gguf-split --merge {first} joined.gguf",
        )


def write_model_folder(path: Path, folder: Path, header: GgufHeader, progress: ProgressListener) -> None:
    """Writes config, weights and tokenizer of a GGUF file into a folder, and checks what it wrote.

    Raises:
        ModelFileError: The file is damaged or can't be converted.
        NumericalError: Weights are NaN or infinite.
        LoadError: The disk is full.
        MemoryShortageError: There is too little memory.
    """
    progress.stage(f"converting {path.name}, once for this file")
    try:
        _save(path, folder, header)
        # The model contains reference cycles, the collector may be paused, and the next step needs the memory.
        gc.collect()
        rows = read_json(folder / "config.json").get("vocab_size")
        write_tokenizer(path, header, folder, rows if isinstance(rows, int) else None, progress)
        save_end_ids(folder, header)
        progress.stage(f"checking {path.name}")
        _verify(folder)
        gc.collect()
    except library_failures() as error:
        if is_disk_full(error):
            size = header.num_parameters * written_type(header).itemsize
            raise disk_error(OSError(28, "disk full"), folder.parent, size) from error
        if is_out_of_memory(error):
            raise shortage(path.name, "cpu", header.num_parameters * 4, "gguf") from error
        raise ModelFileError(
            f"{path} ({header.architecture}, {header.quantization}) can't be converted: {first_line(error)}",
            "the file is damaged or not supported by this transformers; use a folder with safetensors",
        ) from error
    except (ModelFileError, NumericalError, PairError) as error:
        # The message names the staging folder, which is deleted. A single file can't be a PairError.
        message = error.message.replace(str(folder), str(path))
        kind = NumericalError if isinstance(error, NumericalError) else ModelFileError
        raise kind(message, "the GGUF is incomplete or damaged: download it again") from error


def _save(path: Path, folder: Path, header: GgufHeader) -> None:
    """Writes config and weights: unpacked here for families of specgen's decoder, else by transformers."""
    try:
        unpack(path, folder, written_type(header))
    except UnsupportedConfig:
        refuse_lost_scaling(read_contents(path))
        _save_with_transformers(path, folder, header)


def _save_with_transformers(path: Path, folder: Path, header: GgufHeader) -> None:
    if header.absent_ids:
        with tempfile.TemporaryDirectory(dir=folder.parent) as copies:
            copy_whole(path, header, Path(copies) / path.name)
            _convert_with_transformers(Path(copies) / path.name, folder, written_type(header))
        return
    _convert_with_transformers(path.resolve(), folder, written_type(header))


def _convert_with_transformers(source: Path, folder: Path, dtype: torch.dtype) -> None:
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    model, loading = auto.from_pretrained(
        source.parent,
        gguf_file=source.name,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are refused in check_complete, by name
        dtype=dtype,
        quantization_config=transformers.GgufConfig(dequantize=True),
    )
    check_complete(loading, folder, model.state_dict().keys())
    check_finite(model, folder)
    carry_base_over(read_contents(source), model.config)
    _clear_quantization(model)
    model.save_pretrained(folder)


def _clear_quantization(model: Any) -> None:
    """Removes the marks of a quantized model: the weights are plain now, and the folder must load as such."""
    model.config.__dict__.pop("quantization_config", None)
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        if hasattr(model, name):
            try:
                delattr(model, name)
            except AttributeError:
                setattr(model, name, None)


def _verify(folder: Path) -> None:
    """Checks the folder as a later run will, and refuses it if a tensor or the tokenizer is damaged."""
    config = check_folder(folder)
    check_num_rows(table_size(load_tokenizer(folder)), config.vocab_rows, folder)
    if config.decoder is not None:
        TensorFiles(folder, config.weight_files).check(tensor_shapes(config.decoder), [HEAD])
        return
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    model, loading = auto.from_pretrained(
        folder,
        trust_remote_code=False,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        dtype=torch.bfloat16,
    )
    check_complete(loading, folder, model.state_dict().keys())
