"""Shows the progress of a distillation on stderr: a bar on a terminal, otherwise plain lines."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from specgen.render.terminal import is_ascii_only

if TYPE_CHECKING:
    from specgen.distill.settings import DistillProgress

LINE_SECONDS = 30.0
"""Least time between plain lines within a stage; its beginning and end always get one."""
WORDS = {
    "writing": "generating training text",
    "training": "training the draft",
    "measuring": "measuring acceptance",
    "saving": "saving",
}


class DistillBar:
    """Shows a distillation; it is a callback for its progress.

    Args:
        console: Console of stderr.
        quiet: Show nothing.
        clock: Monotonic seconds.
    """

    def __init__(self, console: Console, *, quiet: bool = False, clock: Callable[[], float] = monotonic) -> None:
        self._console, self._quiet, self._clock = console, quiet, clock
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._last_line = 0.0

    def __enter__(self) -> Self:
        if self._console.is_interactive and not self._quiet:
            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[figures]}", markup=False),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
                speed_estimate_period=600,
            )
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def __call__(self, progress: DistillProgress) -> None:
        """Shows the progress."""
        is_new = progress.stage != self._stage
        self._stage = progress.stage
        words = WORDS.get(progress.stage, progress.stage)
        figures = format_figures(progress, ascii_only=is_ascii_only(self._console))
        if self._progress is not None:
            if is_new or self._task is None:
                if self._task is not None:
                    self._progress.remove_task(self._task)
                self._task = self._progress.add_task(words, total=progress.num_steps, figures=figures)
            self._progress.update(self._task, completed=progress.num_done, total=progress.num_steps, figures=figures)
        elif not self._quiet:
            now = self._clock()
            is_last = progress.num_done == progress.num_steps
            if is_new or is_last or now - self._last_line >= LINE_SECONDS:
                self._last_line = now
                text = f"{words}  {figures}".rstrip()
                self._console.print(text, style="muted", soft_wrap=True, markup=False, highlight=False)


def format_figures(progress: DistillProgress, *, ascii_only: bool = False) -> str:
    """Formats the known figures, as in `120/400  loss 2.134  α 0.58`; a stage of one step has no count."""
    parts = []
    if progress.num_steps > 1:
        parts.append(f"{progress.num_done}/{progress.num_steps}")
    if progress.num_tokens:
        parts.append(f"{progress.num_tokens} tokens")
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.alpha is not None:
        parts.append(f"{'alpha' if ascii_only else 'α'} {progress.alpha:.2f}")
    return "  ".join(parts)
