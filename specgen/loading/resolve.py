"""Finds a model by name, downloads or converts it where needed, and checks its files. Reads no weights.

The kind of a name decides who finds the files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from specgen.core.errors import DeviceError, ModelNotFoundError, SettingsError
from specgen.core.progress import SILENT, ProgressListener
from specgen.core.settings import ModelSettings
from specgen.loading.builtin import GGUF_SHA256, converted_builtin, fetch_builtin, fetch_builtin_gguf
from specgen.loading.config_check import DRAFT_HEAD_KEY, check_config, read_config
from specgen.loading.draft_head_folder import check_draft_head
from specgen.loading.gguf.convert import convert_gguf
from specgen.loading.gguf.header import scan_gguf
from specgen.loading.gguf.other_kinds import refuse_vocabulary
from specgen.loading.gguf.parts import scan_parts
from specgen.loading.gguf.tokenizer import tokenizer_folder
from specgen.loading.hub import fetch_snapshot, is_offline
from specgen.loading.libraries import INSTALL_LLAMA_CPP, has_llama_cpp
from specgen.loading.llama_trial import llama_cpp_fault, rebuild_hint
from specgen.loading.names import ModelPlace, PlaceKind, find_place, shipped_folders
from specgen.loading.resolved_model import Format, GgufFile, ModelConfig, ModelFiles, ResolvedModel, Role
from specgen.text.tokenizer import fit_tokenizer, load_tokenizer
from specgen.text.vocabulary import table_size

DEFAULT_CONTEXT = 8192
"""Positions of llama.cpp's cache by default: its memory is allocated at once, and windows of 131,072 are common."""


def find_files(settings: ModelSettings, progress: ProgressListener = SILENT) -> ModelFiles:
    """Finds a model's files; downloads or converts them where needed. The second time this takes milliseconds.

    Raises:
        SettingsError: A weight format is requested for a GGUF, or llama.cpp for another kind of file.
        DeviceError: llama.cpp is requested, and is not installed or would end the program.
        ModelNotFoundError: The model does not exist, or is not in the cache while offline.
        ModelFileError: A file is damaged or unsafe.
        LoadError: Download or conversion failed.
    """
    place = find_place(settings)
    if choose_backend(settings, place) == "llama.cpp":
        return _find_gguf(place, settings, progress)
    files = _FINDERS[place.kind](place, settings, progress)
    if _prefers_llama_cpp(settings, place) and (fault := llama_cpp_fault()) is not None:
        return replace(files, notices=(f"torch runs {files.name}, as llama.cpp {fault}: {rebuild_hint()}",))
    return files


def resolve(files: ModelFiles, settings: ModelSettings, role: Role) -> ResolvedModel:
    """Checks a model's config, the headers of its weight files, and its tokenizer.

    Raises:
        ModelFileError: A file is missing, damaged or unsafe.
        PairError: The tokenizer belongs to another model.
        SettingsError: `--context-size` is larger than the target's window.
    """
    format_: Format = "folder" if files.gguf is None else "gguf"
    if files.gguf is not None:
        config = check_gguf(files, settings, role)
    else:
        values = read_config(files.path)
        if role == "draft" and DRAFT_HEAD_KEY in values:
            return ResolvedModel(files, settings, role, check_draft_head(values, files.path), format="draft head")
        config = check_config(values, files.path, settings.backend.name)
    loaded = load_tokenizer(files.path)
    tokenizer, notice = fit_tokenizer(loaded, config.vocab_rows, files.path)
    notices = tuple(filter(None, (*files.notices, getattr(loaded, "notice", None), notice)))
    return ResolvedModel(files, settings, role, config, tokenizer, table_size(tokenizer), format_, notices=notices)


def choose_backend(settings: ModelSettings, place: ModelPlace) -> Literal["torch", "llama.cpp"]:
    """Decides which backend runs a model.

    `auto` runs GGUF files on llama.cpp if it is installed and works, unless a compute type is requested: llama.cpp's
    compute type depends on the file's weights. The built-in target has a draft head, which runs on torch only.

    Raises:
        SettingsError: llama.cpp is requested for a model it can't run, or with a compute type.
        DeviceError: llama.cpp is requested, and is not installed or would end the program.
    """
    if settings.backend.name == "auto":
        return "llama.cpp" if _prefers_llama_cpp(settings, place) and llama_cpp_fault() is None else "torch"
    if settings.backend.name != "llama.cpp":
        return "torch"
    if not place.is_gguf:
        raise SettingsError(
            f"--backend llama.cpp runs only GGUF files, but {place.name} is not a GGUF file",
            "omit --backend: each model then runs on the backend that supports it",
        )
    if settings.dtype != "auto":
        raise SettingsError(
            f"--dtype {settings.dtype} has no effect on llama.cpp: the file's weights decide the compute type",
            "omit it, or use --backend torch",
        )
    if not has_llama_cpp():
        raise DeviceError("llama-cpp-python is not installed", INSTALL_LLAMA_CPP)
    if (fault := llama_cpp_fault()) is not None:
        raise DeviceError(f"llama.cpp {fault}", f"use --backend torch, or {rebuild_hint()}")
    return "llama.cpp"


def _prefers_llama_cpp(settings: ModelSettings, place: ModelPlace) -> bool:
    """Returns whether `auto` runs a model on the installed llama.cpp, unless that ends the program."""
    prefers_torch = settings.dtype != "auto" or (place.kind == "built-in" and bool(shipped_folders()))
    return settings.backend.name == "auto" and place.is_gguf and not prefers_torch and has_llama_cpp()


def _find_built_in(place: ModelPlace, settings: ModelSettings, progress: ProgressListener) -> ModelFiles:
    return ModelFiles(fetch_builtin(progress, offline=settings.offline or is_offline()), place.name, from_gguf=True)


def _find_snapshot(place: ModelPlace, settings: ModelSettings, progress: ProgressListener) -> ModelFiles:
    settings = replace(settings, name=place.name, revision=settings.revision or place.revision)
    snapshot = fetch_snapshot(settings, progress)
    commit = snapshot.name if re.fullmatch(r"[0-9a-f]{40}", snapshot.name) else None
    return ModelFiles(snapshot, place.name, revision=commit)


def _find_converted(place: ModelPlace, _settings: ModelSettings, progress: ProgressListener) -> ModelFiles:
    return ModelFiles(convert_gguf(_path(place), progress), place.name, from_gguf=True)


def _find_folder(place: ModelPlace, _settings: ModelSettings, _progress: ProgressListener) -> ModelFiles:
    return ModelFiles(_path(place), place.name)


def _find_gguf(place: ModelPlace, settings: ModelSettings, progress: ProgressListener) -> ModelFiles:
    """Finds a GGUF for llama.cpp; only its tokenizer is unpacked."""
    sha256: str | None = None
    if place.kind == "gguf":
        path = _path(place)
    else:
        sha256 = GGUF_SHA256
        try:
            path = fetch_builtin_gguf(progress, offline=settings.offline or is_offline())
        except ModelNotFoundError:
            # An earlier run may have left the converted folder without the GGUF file.
            folder = converted_builtin()
            if settings.backend.name != "auto" or folder is None:
                raise
            return ModelFiles(folder, place.name, from_gguf=True)
    header = scan_parts(path, scan_gguf(path))
    refuse_vocabulary(header, path)
    folder = tokenizer_folder(path, header, progress, sha256=sha256)
    return ModelFiles(folder, place.name, from_gguf=True, gguf=GgufFile(path, header))


def _path(place: ModelPlace) -> Path:
    assert place.path is not None, "a file or folder has one"
    return place.path


_FINDERS: Mapping[PlaceKind, Callable[[ModelPlace, ModelSettings, ProgressListener], ModelFiles]] = {
    "built-in": _find_built_in,
    "hub": _find_snapshot,
    "gguf": _find_converted,
    "folder": _find_folder,
}


def check_gguf(files: ModelFiles, settings: ModelSettings, role: Role) -> ModelConfig:
    """Returns what a GGUF header says of a model. `max_positions` is the size of the cache it will get.

    Raises:
        SettingsError: `--context-size` is larger than the target's window. A draft gets as much as it has.
    """
    assert files.gguf is not None, "the format says so"
    header, requested = files.gguf.header, settings.backend.context_size
    window = header.context_length
    if requested is not None and window is not None and requested > window:
        if role == "target":
            raise SettingsError(
                f"--context-size {requested} is more than the {window} positions of {files.name}",
                f"use at most {window}",
            )
        requested = window
    return ModelConfig(
        model_type=header.architecture,
        vocab_rows=header.vocab_rows,
        max_positions=requested or min(window or DEFAULT_CONTEXT, DEFAULT_CONTEXT),
        quant_method=None,
        dtype=header.quantization,
        num_parameters=header.num_parameters,
        num_weight_bytes=header.num_weight_bytes,
    )
