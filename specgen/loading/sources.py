"""Model settings in, a folder with config, tokenizer and weights on this machine out. Loads nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from specgen.loading.names import find_place
from specgen.loading.progress import SILENT, LoadReport
from specgen.settings import ModelSettings


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model on this machine, not loaded yet.

    Args:
        path: Holds config.json, the tokenizer and safetensors.
        name: What to call the model.
        from_gguf: Converted from a GGUF, which is already quantized.
        revision: Commit of a hub model.
    """

    path: Path
    name: str
    from_gguf: bool
    revision: str | None = None


def prepare_folder(settings: ModelSettings, report: LoadReport = SILENT) -> ModelFolder:
    """Find a model, and fetch or convert it where that is needed. The second time this takes milliseconds.

    Raises:
        SettingsError: A weight format is asked for a GGUF.
        ModelNotFoundError: No such model, or offline and not here.
        ModelFileError: A file is damaged or unsafe.
        LoadError: Download or conversion failed.
    """
    place = find_place(settings)
    if place.kind == "built-in":
        from specgen.loading.builtin import fetch_builtin
        from specgen.loading.hub import is_offline

        return ModelFolder(fetch_builtin(report, offline=settings.offline or is_offline()), place.name, True)
    if place.kind == "hub":
        from specgen.loading.hub import fetch_snapshot

        snapshot = fetch_snapshot(settings, report)
        commit = snapshot.name if re.fullmatch(r"[0-9a-f]{40}", snapshot.name) else None
        return ModelFolder(snapshot, place.name, False, commit)
    assert place.path is not None
    if place.kind == "gguf":
        from specgen.loading.convert import convert_gguf

        return ModelFolder(convert_gguf(place.path, report), place.name, True)
    return ModelFolder(place.path, place.name, False)
