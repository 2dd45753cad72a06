"""What loading tells while it works: a stage in words, bytes done of bytes known. Standard library only."""

from __future__ import annotations

from typing import Protocol


class LoadReport(Protocol):
    """Receives the progress of loading. Called often and from the loading thread: be quick, and never raise."""

    def stage(self, text: str) -> None:
        """A new step begins; `text` is a short phrase such as `loading smollm2-135m-instruct`."""

    def bytes(self, done: int, total: int | None) -> None:
        """`done` of `total` bytes of the current stage are there; `total` is None while it is unknown."""


class SilentReport:
    """A report nobody reads."""

    def stage(self, text: str) -> None:
        pass

    def bytes(self, done: int, total: int | None) -> None:
        pass


SILENT: LoadReport = SilentReport()
