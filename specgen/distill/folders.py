"""Creates, finds again or refuses the work folders of a distillation: each belongs to one set of settings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specgen.core.errors import OutputError, SettingsError
from specgen.core.units import format_size
from specgen.storage.atomic_write import replace_file
from specgen.storage.lock import FileLock, LockedError

SETTINGS = "settings.json"


@dataclass(frozen=True, slots=True)
class WorkFolder:
    """A folder for the work with one set of settings.

    Args:
        folder: New, empty, or prepared by an earlier run.
        inner: Where its settings file is: the folder itself, or a folder in it.
        settings: As plain values for JSON.
        content: What the folder contains, for messages.
        num_bytes: Disk space that the work needs.
    """

    folder: Path
    inner: Path
    settings: Mapping[str, Any]
    content: str
    num_bytes: float


def prepare_folders(folders: Sequence[WorkFolder]) -> None:
    """Creates all of the folders, or none; accepts those that an earlier run prepared with the same settings.

    Raises:
        SettingsError: A folder contains something else, or work with other settings.
        OutputError: A folder can't be created, or the disk has too little space.
    """
    new = [folder for folder in folders if not _is_prepared(folder)]
    _check_space(new)
    for folder in new:
        try:
            folder.inner.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _write_error(folder, error) from error
        replace_file(folder.inner / SETTINGS, json.dumps(folder.settings).encode())


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Runs the block while no other process works in the folder.

    Raises:
        SettingsError: Another process works in it.
        OutputError: The folder can't be written to.
    """
    try:
        lock = FileLock(folder / ".lock")
    except LockedError as error:
        raise SettingsError(
            f"process {error.owner} is using {folder}", "wait until it ends, or give another folder"
        ) from error
    with lock:
        yield


def _is_prepared(work: WorkFolder) -> bool:
    """Returns whether an earlier run prepared the folder; False if the folder is free."""
    path = work.inner / SETTINGS
    try:
        if path.exists():
            try:
                saved = json.loads(path.read_bytes())
            except ValueError:
                saved = None
            if saved != json.loads(json.dumps(work.settings)):
                raise SettingsError(
                    f"{work.folder} contains {work.content} made with other settings",
                    "give the same options to continue, or another folder",
                )
            return True
        # A run that was killed at its start leaves `inner` empty.
        is_free = not work.folder.exists() or all(
            entry == work.inner and not any(entry.iterdir()) for entry in work.folder.iterdir()
        )
    except OSError as error:
        raise _write_error(work, error) from error
    if not is_free:
        raise SettingsError(f"{work.folder} is not empty", "give a new folder")
    return False


def _check_space(folders: Sequence[WorkFolder]) -> None:
    """Adds up what the folders on one disk need."""
    needed: dict[int, float] = {}
    for work in folders:
        existing = next(parent for parent in (work.folder, *work.folder.absolute().parents) if parent.exists())
        disk = existing.stat().st_dev
        needed[disk] = needed.get(disk, 0) + work.num_bytes
        free = shutil.disk_usage(existing).free
        if needed[disk] > free:
            raise OutputError(
                f"not enough disk space for {work.folder}: about {format_size(needed[disk])} needed, "
                f"{format_size(free)} free",
                "free some space, choose another folder, or use fewer prompts with --num-prompts",
            )


def _write_error(work: WorkFolder, error: OSError) -> OutputError:
    return OutputError(f"can't write {work.folder}: {error.strerror or error}", "choose another folder")
