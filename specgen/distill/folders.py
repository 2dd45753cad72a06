"""Folders that hold the work of one set of settings: made, found again, or refused. No torch."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specgen.core.errors import OutputError, SettingsError
from specgen.storage.atomic_write import replace_file
from specgen.storage.lock import locked

SETTINGS = "settings.json"


@dataclass(frozen=True, slots=True)
class Place:
    """A folder for work.

    Args:
        folder: New or empty, or claimed before.
        inside: The folder itself or one in it: where the settings are kept.
        wanted: Settings, as plain values for JSON.
        what: What lies in the folder, for people.
        num_bytes: What the work will take there.
    """

    folder: Path
    inside: Path
    wanted: Mapping[str, Any]
    what: str
    num_bytes: float


def claim(places: Sequence[Place]) -> None:
    """Make folders for work with these settings, or find them with the same ones; all of them or none.

    Raises:
        SettingsError: One holds something else, or work with other settings.
        OutputError: One can't be made, or there is too little room: told at once, and not after an hour.
    """
    new = [place for place in places if not _is_claimed(place)]
    _check_room(new)
    for place in new:
        try:
            place.inside.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _failure(place, error) from error
        replace_file(place.inside / SETTINGS, json.dumps(place.wanted).encode())


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Work in a folder that no other process works in; the lock ends with the process.

    Raises:
        SettingsError: Another one does.
        OutputError: The folder can't be written.
    """

    def in_use(owner: str) -> SettingsError:  # noqa: ARG001  the process has no name that would tell more
        return SettingsError(f"another process works in {folder}", "wait for its end, or give another folder")

    descriptor = locked(folder / ".lock", in_use)
    try:
        yield
    finally:
        os.close(descriptor)


def _is_claimed(place: Place) -> bool:
    """Whether the folder holds this work; False where it is free for it."""
    state = place.inside / SETTINGS
    try:
        if state.exists():
            if _read(state) != json.loads(json.dumps(place.wanted)):
                raise SettingsError(
                    f"{place.folder} holds {place.what} of other settings",
                    "give the same options to go on, or another folder",
                )
            return True
        # A run that was killed at its very beginning leaves an empty folder of ours.
        is_free = not place.folder.exists() or all(
            entry == place.inside and not any(entry.iterdir()) for entry in place.folder.iterdir()
        )
    except OSError as error:
        raise _failure(place, error) from error
    if not is_free:
        raise SettingsError(f"{place.folder} is not empty", "give a new folder")
    return False


def _read(state: Path) -> Any:
    try:
        return json.loads(state.read_bytes())
    except ValueError:
        return None


def _check_room(places: Sequence[Place]) -> None:
    """What is needed on one disk counts together."""
    needed: dict[int, float] = {}
    for place in places:
        existing = next(parent for parent in (place.folder, *place.folder.absolute().parents) if parent.exists())
        disk = existing.stat().st_dev
        needed[disk] = needed.get(disk, 0) + place.num_bytes
        free = shutil.disk_usage(existing).free
        if needed[disk] > free:
            raise OutputError(
                f"{place.folder} needs about {needed[disk] / 1e9:.1f} GB while a draft is made, {free / 1e9:.1f} GB "
                "are free",
                "make room, choose another folder, or take fewer prompts with --num-prompts",
            )


def _failure(place: Place, error: OSError) -> OutputError:
    return OutputError(f"cannot write {place.folder}: {error.strerror or error}", "choose another folder")
