"""Model settings in, a folder with config, tokenizer and weights on this machine out. Loads nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from specgen.core.errors import ModelNotFoundError
from specgen.core.progress import SILENT, ProgressListener
from specgen.core.settings import ModelSettings
from specgen.loading.backends import choose_backend
from specgen.loading.gguf.header import GgufHeader, scan_gguf
from specgen.loading.names import ModelPlace, find_place


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model on this machine, not loaded yet.

    Args:
        path: Holds config.json, the tokenizer and safetensors; only the tokenizer for a model that llama.cpp runs.
        name: What to call the model.
        from_gguf: Converted from a GGUF, which is already quantized.
        revision: Commit of a hub model.
        gguf: The file llama.cpp runs; None for a model that transformers runs.
    """

    path: Path
    name: str
    from_gguf: bool
    revision: str | None = None
    gguf: GgufFile | None = None


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A GGUF as it is, its header checked."""

    path: Path
    header: GgufHeader


def prepare_folder(settings: ModelSettings, progress: ProgressListener = SILENT) -> ModelFolder:
    """Find a model, and fetch or convert it where that is needed. The second time this takes milliseconds.

    Raises:
        SettingsError: A weight format is asked for a GGUF, or llama.cpp for something else.
        DeviceError: llama.cpp is asked for and not installed.
        ModelNotFoundError: No such model, or offline and not here.
        ModelFileError: A file is damaged or unsafe.
        LoadError: Download or conversion failed.
    """
    place = find_place(settings)
    if choose_backend(settings, place) == "llama.cpp":
        return _as_it_is(place, settings, progress)
    if place.kind == "built-in":
        from specgen.loading.builtin import fetch_builtin
        from specgen.loading.hub import is_offline

        return ModelFolder(fetch_builtin(progress, offline=settings.offline or is_offline()), place.name, True)
    if place.kind == "hub":
        from specgen.loading.hub import fetch_snapshot

        snapshot = fetch_snapshot(settings, progress)
        commit = snapshot.name if re.fullmatch(r"[0-9a-f]{40}", snapshot.name) else None
        return ModelFolder(snapshot, place.name, False, commit)
    assert place.path is not None
    if place.kind == "gguf":
        from specgen.loading.gguf.convert import convert_gguf

        return ModelFolder(convert_gguf(place.path, progress), place.name, True)
    return ModelFolder(place.path, place.name, False)


def _as_it_is(place: ModelPlace, settings: ModelSettings, progress: ProgressListener) -> ModelFolder:
    """A GGUF for llama.cpp: only its tokenizer is unpacked."""
    from specgen.loading.gguf.tokenizer import tokenizer_folder

    sha256: str | None = None
    path = place.path
    if path is None:
        from specgen.loading.builtin import GGUF_SHA256, converted_builtin, fetch_builtin_gguf
        from specgen.loading.hub import is_offline

        sha256 = GGUF_SHA256
        try:
            path = fetch_builtin_gguf(progress, offline=settings.offline or is_offline())
        except ModelNotFoundError:
            # An older run may have left the unpacked model and not the file.
            folder = converted_builtin()
            if settings.backend.name != "auto" or folder is None:
                raise
            return ModelFolder(folder, place.name, True)
    header = scan_gguf(path)
    folder = tokenizer_folder(path, header, progress, sha256=sha256)
    return ModelFolder(folder, place.name, True, gguf=GgufFile(path, header))
