"""Shows the progress of a benchmark on stderr: a bar on a terminal, otherwise a line per repeat."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

WORDS = {
    "reading": "preparing",
    "costs": "timing passes",
    "warmup": "warming up",
    "run": "measuring",
    "repeat": "measuring",
    "end": "done",
}


class BenchProgressBar:
    """Shows a bar with the time left, or a line per repeat.

    Args:
        console: Console of stderr.
        quiet: Show nothing.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._num_repeats = 0

    def __enter__(self) -> Self:
        if self._console.is_interactive and not self._quiet:
            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                # Runs of different settings differ in length; a fair estimate needs a whole cycle of settings.
                TimeRemainingColumn(elapsed_when_finished=True),
                console=self._console,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
                speed_estimate_period=600,
            )
            self._task = self._progress.add_task("preparing", total=None)
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def step(self, stage: str, num_done: int, num_steps: int) -> None:
        """Shows a step of the benchmark."""
        if self._progress is not None and self._task is not None:
            self._progress.update(
                self._task, description=WORDS.get(stage, stage), completed=num_done, total=num_steps or None
            )
        elif stage == "repeat" and not self._quiet:
            self._num_repeats += 1
            text = f"repeat {self._num_repeats} done, run {num_done} of {num_steps}"
            self._console.print(text, style="muted", soft_wrap=True)

    def stop(self) -> None:
        """Erases the bar. Can be called again."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
