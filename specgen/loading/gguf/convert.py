"""Converts a GGUF file to a folder with bfloat16 safetensors in the cache, once per file: it takes 15 to 60 s.

The folder is published only when it is complete, and concurrent programs convert a file only once.
"""

from __future__ import annotations

import gc
import importlib
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from specgen.core.errors import (
    ModelFileError,
    NumericalError,
    PairError,
    first_line,
    is_out_of_memory,
    library_failures,
)
from specgen.core.model_files import read_json
from specgen.core.progress import SILENT, ProgressListener
from specgen.loading.config_check import check_folder, has_weights
from specgen.loading.config_reader import UnsupportedConfig
from specgen.loading.gguf.absent_ids import copy_whole
from specgen.loading.gguf.header import scan_gguf
from specgen.loading.gguf.metadata import GgufHeader
from specgen.loading.gguf.parts import first_part
from specgen.loading.gguf.tokenizer import (
    check_tokenizer,
    content_key,
    save_end_ids,
    write_tokenizer,
)
from specgen.loading.memory import shortage
from specgen.models.tensor_names import HEAD, tensor_shapes
from specgen.storage.atomic_write import publish_folder
from specgen.storage.folders import (
    cache_folder,
    cache_root,
    check_space,
    disk_error,
    is_disk_full,
    single_writer,
    staging,
)
from specgen.text.tokenizer import check_num_rows, load_tokenizer
from specgen.text.vocabulary import table_size


def convert_gguf(path: Path, progress: ProgressListener = SILENT, *, sha256: str | None = None) -> Path:
    """Converts a GGUF file, or returns the folder of an earlier conversion.

    Args:
        sha256: The file's hash if known; otherwise its path, size and time identify its content.

    Raises:
        ModelFileError: The file is damaged, or its architecture can't be converted.
        LoadError: The disk is full.
        MemoryShortageError: There is too little memory to convert it.
    """
    models = cache_folder("models")
    key = content_key(path, sha256)
    final = models / key
    if has_weights(final):
        return final
    header = scan_gguf(path)
    _check_supported(header, path)
    with single_writer(models / f"{key}.lock", progress):
        if has_weights(final):  # another program has just converted it
            return final
        # bfloat16 takes two bytes per value; config and tokenizer take at most 35 MB.
        needed = header.num_parameters * 2 + 35_000_000
        check_space(models, needed)
        with staging(models, key) as folder:
            try:
                _unpack(path, folder, header, progress)
                publish_folder(folder, final)
            except OSError as error:
                raise disk_error(error, models, needed) from error
    return final


def converted_folder(key: str) -> Path | None:
    """Returns the folder of an earlier conversion, or None."""
    folder = cache_root() / "models" / key
    return folder if has_weights(folder) else None


def _check_supported(header: GgufHeader, path: Path) -> None:
    from specgen.loading.gguf.unpack import can_unpack

    check_single(header, path)
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


def check_single(header: GgufHeader, path: Path) -> None:
    """Refuses a part of a split model: only llama.cpp reads several files.

    Raises:
        ModelFileError: The file is one.
    """
    if header.num_parts > 1:
        first = (first_part(path) or path).name
        raise ModelFileError(
            f"{path} is one of {header.num_parts} parts of a model, which only llama.cpp reads",
            f"use --backend llama.cpp (pip install 'specgen-cli[gguf]'), or join them with the program from "
            f"github.com/ggml-org/llama.cpp/releases: llama-gguf-split --merge {first} joined.gguf",
        )


def _unpack(path: Path, folder: Path, header: GgufHeader, progress: ProgressListener) -> None:
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
            raise disk_error(OSError(28, "disk full"), folder.parent, header.num_parameters * 2) from error
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
    from specgen.loading.gguf.rotary import refuse_lost_scaling
    from specgen.loading.gguf.unpack import unpack

    try:
        unpack(path, folder)
    except UnsupportedConfig:
        refuse_lost_scaling(path)
        _save_with_transformers(path, folder, header)


def _save_with_transformers(path: Path, folder: Path, header: GgufHeader) -> None:
    if header.absent_ids:
        with tempfile.TemporaryDirectory(dir=folder.parent) as copies:
            copy_whole(path, header, Path(copies) / path.name)
            _convert_with_transformers(Path(copies) / path.name, folder)
        return
    _convert_with_transformers(path.resolve(), folder)


def _convert_with_transformers(source: Path, folder: Path) -> None:
    import torch
    import transformers

    from specgen.loading.gguf.rotary import carry_base_over
    from specgen.loading.transformers_weights import check_complete, check_finite

    auto: Any = transformers.AutoModelForCausalLM
    model, loading = auto.from_pretrained(
        source.parent,
        gguf_file=source.name,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are refused in check_complete, by name
        dtype=torch.bfloat16,
        quantization_config=transformers.GgufConfig(dequantize=True),
    )
    check_complete(loading, folder, model.state_dict().keys())
    check_finite(model, folder)
    carry_base_over(source, model.config)
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
    from specgen.loading.tensor_files import TensorFiles
    from specgen.loading.transformers_weights import check_complete

    config = check_folder(folder)
    check_num_rows(table_size(load_tokenizer(folder)), config.vocab_rows, folder)
    if config.decoder is not None:
        TensorFiles(folder, config.weight_files).check(tensor_shapes(config.decoder), [HEAD])
        return
    import torch
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
