"""Folders that hold the work of one set of settings: made, found again, or refused. Standard library only."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from specgen.errors import OutputError, SettingsError

SETTINGS = "settings.json"


def claim(folder: Path, inside: Path, wanted: Mapping[str, Any], what: str, num_bytes: float) -> None:
    """Make a folder for work with these settings, or find it with the same ones.

    Args:
        folder: The folder; new or empty, or claimed before.
        inside: The folder itself or one in it: where the settings are kept.
        wanted: Settings, as plain values for JSON.
        what: What lies in the folder, for people.
        num_bytes: What the work will take there; refused at once if there is no room, and not after an hour.

    Raises:
        SettingsError: It holds something else, or work with other settings.
        OutputError: It can't be made, or there is too little room.
    """
    state = inside / SETTINGS
    if state.exists():
        if json.loads(state.read_text(encoding="utf-8")) != json.loads(json.dumps(wanted)):
            raise SettingsError(
                f"{folder} holds {what} of other settings", "give the same options to go on, or another folder"
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise SettingsError(f"{folder} is not empty", "give a new folder")
    try:
        inside.mkdir(parents=True, exist_ok=True)
        _check_room(folder, num_bytes)
        state.write_text(json.dumps(wanted), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
    except OutputError:
        with suppress(OSError):
            inside.rmdir()
            folder.rmdir()
        raise


def _check_room(folder: Path, num_bytes: float) -> None:
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise OutputError(
            f"{folder} needs about {num_bytes / 1e9:.1f} GB while a draft is made, {free / 1e9:.1f} GB are free",
            "make room, choose another folder, or take fewer prompts with --num-prompts",
        )
