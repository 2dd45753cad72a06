"""Defines how loading reports its progress: the current stage, and the bytes done of the bytes known."""

from __future__ import annotations

from typing import Protocol


class ProgressListener(Protocol):
    """Receives the progress of loading. Called often, from the loading thread: return quickly and never raise."""

    def stage(self, text: str) -> None:
        """Starts a new stage; `text` is a short phrase such as `loading smollm2-135m-instruct`."""

    def bytes(self, done: int, total: int | None) -> None:
        """Reports `done` of `total` bytes of the current stage; `total` is None while it is unknown."""


class SilentProgress:
    """Ignores all progress."""

    def stage(self, text: str) -> None:
        pass

    def bytes(self, done: int, total: int | None) -> None:
        pass


SILENT: ProgressListener = SilentProgress()
