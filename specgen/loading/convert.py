"""A GGUF file in, a folder of bf16 safetensors in the cache out. Once per file: unpacking takes 15 to 60 s.

The folder appears whole or not at all, and two programs that want the same one make it once.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from pathlib import Path
from typing import Any

from specgen.errors import ModelFileError, NumericalError, PairError
from specgen.loading.cache import (
    cache_folder,
    cache_root,
    check_space,
    disk_error,
    is_disk_full,
    one_at_a_time,
    publish,
    staging,
)
from specgen.loading.config_check import has_weights
from specgen.loading.failures import first_line, is_out_of_memory, library_failures
from specgen.loading.files import read_json
from specgen.loading.gguf_scan import GgufHeader, scan_gguf
from specgen.loading.memory import shortage
from specgen.loading.progress import SILENT, LoadReport

FORMAT = 1
"""Part of every key: raise it when a conversion made by an older specgen must not be used any more."""


def convert_gguf(path: Path, report: LoadReport = SILENT, *, sha256: str | None = None) -> Path:
    """Convert a GGUF, or find the folder an earlier run made of it.

    Args:
        path: The file.
        report: Told what happens.
        sha256: The file's hash where it is known; else its path, size and time stand for its content.

    Raises:
        ModelFileError: The file is damaged, or of an architecture that can't be unpacked.
        LoadError: The disk is full.
        MemoryShortageError: Too little memory to unpack it.
    """
    models = cache_folder("models")
    key = content_key(path, sha256)
    final = models / key
    if has_weights(final):
        return final
    header = scan_gguf(path)
    _check_supported(header, path)
    with one_at_a_time(models / f"{key}.lock", report):
        if has_weights(final):  # the program waited for has made it
            return final
        # bfloat16 takes two bytes a value; config and tokenizer have 35 MB at most.
        needed = header.num_parameters * 2 + 35_000_000
        check_space(models, needed)
        with staging(models, key) as folder:
            try:
                _unpack(path, folder, header, report)
                publish(folder, final)
            except OSError as error:
                raise disk_error(error, models, needed) from error
    return final


def converted_folder(key: str) -> Path | None:
    """The finished folder of a key; None if there is none. Makes nothing."""
    folder = cache_root() / "models" / key
    return folder if has_weights(folder) else None


def content_key(path: Path, sha256: str | None) -> str:
    """The name of the cache entry of a file: readable in front, and different for different content."""
    if sha256 is None:
        # The hash of a 9 GB file takes half a minute; a changed file has another time or size.
        real = path.resolve()
        status = real.stat()
        identity = f"{real}\0{status.st_size}\0{status.st_mtime_ns}"
    else:
        identity = sha256
    digest = hashlib.sha256(f"{FORMAT}\0{identity}".encode(errors="surrogateescape")).hexdigest()
    return f"{re.sub(r'[^a-z0-9.-]+', '-', path.stem.lower())[:60].strip('.-') or 'model'}-{digest[:16]}"


def _check_supported(header: GgufHeader, path: Path) -> None:
    if header.num_parts > 1:
        raise ModelFileError(
            f"{path} is one of {header.num_parts} parts of a model", "join them first with: llama-gguf-split --merge"
        )
    if header.tokenizer_model is None:
        raise ModelFileError(f"{path} holds no tokenizer", "choose a GGUF of a language model, with its tokenizer")
    known = _known_architectures()
    if known and header.architecture not in known:
        raise ModelFileError(
            f"{path}: this transformers can't unpack the GGUF architecture {header.architecture!r}",
            "upgrade transformers, or give the model as a folder with safetensors",
        )


def _known_architectures() -> set[str]:
    """What the installed transformers unpacks; empty if it no longer tells, then its own error has to do."""
    known: set[str] = set()
    for module, name in (
        ("transformers.modeling_gguf_pytorch_utils", "GGUF_SUPPORTED_ARCHITECTURES"),
        ("transformers.integrations.gguf", "GGUF_CONFIG_ARCHS"),
    ):
        try:
            known |= set(getattr(importlib.import_module(module), name, ()))
        except ImportError:
            continue
    return known


def _unpack(path: Path, folder: Path, header: GgufHeader, report: LoadReport) -> None:
    report.stage(f"unpacking {path.name}, once for this file")
    try:
        _save(path, folder)
        _keep_end_ids(folder, header)
        _drop_added_tokens(folder)
        report.stage(f"checking {path.name}")
        _verify(folder)
    except library_failures() as error:
        if is_disk_full(error):
            raise disk_error(OSError(28, "disk full"), folder.parent, header.num_parameters * 2) from error
        if is_out_of_memory(error):
            raise shortage(path.name, "cpu", header.num_parameters * 4, "gguf") from error
        raise ModelFileError(
            f"{path} ({header.architecture}, {header.quantization}) can't be unpacked: {first_line(error)}",
            "the file is damaged or of a kind this transformers can't read; give the model as safetensors",
        ) from error
    except (ModelFileError, NumericalError, PairError) as error:
        # They name the staging folder, which is gone by now. One file can't be a pair that doesn't fit.
        message = error.message.replace(str(folder), str(path))
        kind = NumericalError if isinstance(error, NumericalError) else ModelFileError
        raise kind(message, "the GGUF is incomplete or damaged: download it again") from error


def _save(path: Path, folder: Path) -> None:
    import torch
    import transformers

    from specgen.loading.tokenizer import checked_library_call
    from specgen.loading.weights import check_complete, check_finite

    auto: Any = transformers.AutoModelForCausalLM
    source = path.resolve()
    tokenizer = checked_library_call(
        lambda: transformers.AutoTokenizer.from_pretrained(
            source.parent, gguf_file=source.name, trust_remote_code=False, local_files_only=True
        ),
        f"the tokenizer of {path} can't be unpacked",
    )
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
    check_complete(loading, folder)
    check_finite(model, folder)
    _forget_quantization(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _forget_quantization(model: Any) -> None:
    """Take off what marks the model as a GGUF: the weights are plain now, and the folder must load as such."""
    model.config.__dict__.pop("quantization_config", None)
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        if hasattr(model, name):
            try:
                delattr(model, name)
            except AttributeError:
                setattr(model, name, None)


def _keep_end_ids(folder: Path, header: GgufHeader) -> None:
    """Write every end id of the GGUF down: chat models end a turn with eot, which transformers leaves out."""
    path = folder / "generation_config.json"
    config = read_json(path) if path.exists() else {}
    known = config.get("eos_token_id")
    ids = [*(known if isinstance(known, list) else [] if known is None else [known]), *header.end_ids]
    if ids:
        config["eos_token_id"] = list(dict.fromkeys(ids))
        path.write_text(json.dumps(config, indent=2) + "\n")


def _drop_added_tokens(folder: Path) -> None:
    """Take out tokens the model has no row for: transformers adds GPT-2's `<|endoftext|>` where a GGUF has none.

    A user who types that string would otherwise send an id the model can't look up.
    """
    rows = read_json(folder / "config.json").get("vocab_size")
    path, config_path = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not path.exists() or not isinstance(rows, int):
        return
    tokenizer, config = read_json(path), read_json(config_path)
    added = tokenizer.get("added_tokens") or []
    dropped = {token["content"] for token in added if token["id"] >= rows}
    if not dropped:
        return
    tokenizer["added_tokens"] = [token for token in added if token["id"] < rows]
    config = {key: value for key, value in config.items() if not (isinstance(value, str) and value in dropped)}
    config.pop("added_tokens_decoder", None)
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    config_path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _verify(folder: Path) -> None:
    """Load the folder as a later run will, and refuse it if a tensor or the tokenizer did not survive."""
    import torch
    import transformers

    from specgen.loading.config_check import check_folder
    from specgen.loading.tokenizer import check_rows, load_tokenizer
    from specgen.loading.weights import check_complete

    auto: Any = transformers.AutoModelForCausalLM
    facts = check_folder(folder)
    check_rows(load_tokenizer(folder), facts, folder)
    _, loading = auto.from_pretrained(
        folder,
        trust_remote_code=False,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        dtype=torch.bfloat16,
    )
    check_complete(loading, folder)
