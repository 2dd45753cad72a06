"""Finds a model by name, downloads or converts it where needed, and checks its files. Reads no weights."""

from __future__ import annotations

import re

from specgen.core.errors import ModelNotFoundError
from specgen.core.progress import SILENT, ProgressListener
from specgen.core.settings import ModelSettings
from specgen.loading.backends import choose_backend
from specgen.loading.config_check import check_folder
from specgen.loading.draft_head_folder import check_draft_head, is_draft_head
from specgen.loading.gguf.config import gguf_config
from specgen.loading.gguf.header import scan_gguf
from specgen.loading.names import ModelPlace, find_place
from specgen.loading.resolved_model import GgufFile, ModelFiles, ResolvedModel, Role
from specgen.text.tokenizer import check_num_rows, load_tokenizer
from specgen.text.vocabulary import table_size


def resolve(files: ModelFiles, settings: ModelSettings, role: Role) -> ResolvedModel:
    """Checks a model's config, the headers of its weight files, and its tokenizer.

    Raises:
        ModelFileError: A file is missing, damaged or unsafe.
        PairError: The tokenizer belongs to another model.
        SettingsError: `--context-size` is larger than the target's window.
    """
    if role == "draft" and is_draft_head(files.path):
        head = check_draft_head(files.path)
        return ResolvedModel(files, settings, role, head.config, draft_head=head)
    if files.gguf is None:
        config = check_folder(files.path)
    else:
        config = gguf_config(files.gguf.header, settings.backend, files.name, role)
    tokenizer = load_tokenizer(files.path)
    num_tokens = table_size(tokenizer)
    check_num_rows(num_tokens, config.vocab_rows, files.path)
    return ResolvedModel(files, settings, role, config, tokenizer, num_tokens)


def find_files(settings: ModelSettings, progress: ProgressListener = SILENT) -> ModelFiles:
    """Finds a model's files; downloads or converts them where needed. The second time this takes milliseconds.

    Raises:
        SettingsError: A weight format is requested for a GGUF, or llama.cpp for another kind of file.
        DeviceError: llama.cpp is requested and not installed.
        ModelNotFoundError: The model does not exist, or is not in the cache while offline.
        ModelFileError: A file is damaged or unsafe.
        LoadError: Download or conversion failed.
    """
    place = find_place(settings)
    if choose_backend(settings, place) == "llama.cpp":
        return _llama_cpp_files(place, settings, progress)
    if place.kind == "built-in":
        from specgen.loading.builtin import fetch_builtin
        from specgen.loading.hub import is_offline

        folder = fetch_builtin(progress, offline=settings.offline or is_offline())
        return ModelFiles(folder, place.name, from_gguf=True)
    if place.kind == "hub":
        from specgen.loading.hub import fetch_snapshot

        snapshot = fetch_snapshot(settings, progress)
        commit = snapshot.name if re.fullmatch(r"[0-9a-f]{40}", snapshot.name) else None
        return ModelFiles(snapshot, place.name, revision=commit)
    assert place.path is not None
    if place.kind == "gguf":
        from specgen.loading.gguf.convert import convert_gguf

        return ModelFiles(convert_gguf(place.path, progress), place.name, from_gguf=True)
    return ModelFiles(place.path, place.name)


def _llama_cpp_files(place: ModelPlace, settings: ModelSettings, progress: ProgressListener) -> ModelFiles:
    """Finds a GGUF for llama.cpp; only its tokenizer is unpacked."""
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
            # An earlier run may have left the converted folder without the GGUF file.
            folder = converted_builtin()
            if settings.backend.name != "auto" or folder is None:
                raise
            return ModelFiles(folder, place.name, from_gguf=True)
    header = scan_gguf(path)
    folder = tokenizer_folder(path, header, progress, sha256=sha256)
    return ModelFiles(folder, place.name, from_gguf=True, gguf=GgufFile(path, header))
