"""Shows the progress of loading, benchmarks and distillations on stderr: a bar on a terminal, or plain lines."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from specgen.render.sanitize import one_line
from specgen.render.terminal import is_ascii_only

if TYPE_CHECKING:
    from specgen.distill.settings import DistillProgress

LINE_SECONDS = 30.0
"""Least time between plain lines of a batch, or of a stage of a distillation; the stage's begin and end get one."""
_BENCH_WORDS = {
    "reading": "preparing",
    "costs": "timing passes",
    "warmup": "warming up",
    "run": "measuring",
    "prompt": "measuring",
    "repeat": "measuring",
    "end": "done",
}
_DISTILL_WORDS = {
    "writing": "generating training text",
    "training": "training the draft",
    "measuring": "measuring acceptance",
    "saving": "saving",
}


class _Bar:
    """Shows one task in a line that is erased at the end; nothing without a terminal, or if it is not `is_shown`."""

    def __init__(self, console: Console, *columns: ProgressColumn, is_shown: bool) -> None:
        self._console = console
        self._columns = columns
        self._is_shown = is_shown and console.is_interactive
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if self._is_shown:
            self._progress = Progress(
                *self._columns,
                console=self._console,
                transient=True,
                # The answer goes to stdout; Rich would redirect it to stderr while a bar is shown.
                redirect_stdout=False,
                redirect_stderr=False,
                # Runs of different settings differ in length; a fair estimate needs a whole cycle of settings.
                speed_estimate_period=600,
            )
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Erases the line and shows the cursor. Can be called again."""
        if self._progress is not None:
            self._progress.stop()
            self._progress, self._task = None, None

    def _start_task(self, words: str, total: float | None = None, **fields: Any) -> None:
        if self._progress is not None:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = self._progress.add_task(words, total=total, **fields)

    def _update_task(self, **fields: Any) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, **fields)

    def _print(self, text: str) -> None:
        self._console.print(text, style="muted", soft_wrap=True, markup=False, highlight=False)


class LoadProgress(_Bar):
    """Shows what is being loaded. Must be stopped before the first token.

    With `verbose` it prints a plain line per stage instead; otherwise it shows nothing in a pipe or file.
    """

    def __init__(self, console: Console, *, quiet: bool = False, verbose: bool = False) -> None:
        super().__init__(
            console,
            SpinnerColumn("line" if is_ascii_only(console) else "dots"),
            _words_column(Column(no_wrap=True, overflow="ellipsis", ratio=1)),
            BarColumn(bar_width=20),
            _BytesColumn(),
            is_shown=not quiet and not verbose,
        )
        self._prints_lines = verbose and not quiet

    def stage(self, text: str) -> None:
        """Starts a stage, such as "loading Qwen/Qwen2.5-7B-Instruct"."""
        safe = one_line(text, ascii_only=is_ascii_only(self._console))
        self._start_task(safe)
        if self._prints_lines:
            self._print(safe)

    def bytes(self, done: int, total: int | None) -> None:
        """Shows the progress of the stage. `total` is None while unknown."""
        self._update_task(completed=done, total=total, has_bytes=True)


class _BytesColumn(DownloadColumn):
    """Shows the bytes of a stage that reported any."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.fields.get("has_bytes") else Text()


class BenchProgressBar(_Bar):
    """Shows the runs of a benchmark and the time left; without a terminal, a line per repeat."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        left = TimeRemainingColumn(elapsed_when_finished=True)
        super().__init__(
            console, _words_column(), BarColumn(bar_width=24), MofNCompleteColumn(), left, is_shown=not quiet
        )
        self._prints_lines = not quiet and not self._is_shown
        self._num_repeats = 0

    def __enter__(self) -> Self:
        super().__enter__()
        self._start_task("preparing")
        return self

    def step(self, stage: str, num_done: int, num_steps: int) -> None:
        """Shows a step of the benchmark."""
        self._update_task(description=_BENCH_WORDS.get(stage, stage), completed=num_done, total=num_steps or None)
        if stage == "repeat" and self._prints_lines:
            self._num_repeats += 1
            self._print(f"repeat {self._num_repeats} done, run {num_done} of {num_steps}")


class DistillBar(_Bar):
    """Shows a distillation; it is a callback for its progress. Without a terminal it prints lines."""

    def __init__(self, console: Console, *, quiet: bool = False, clock: Callable[[], float] = monotonic) -> None:
        figures = TextColumn("{task.fields[figures]}", markup=False)
        super().__init__(
            console, _words_column(), BarColumn(bar_width=20), figures, TimeRemainingColumn(), is_shown=not quiet
        )
        self._prints_lines = not quiet and not self._is_shown
        self._clock = clock
        self._stage = ""
        self._last_line = 0.0

    def __call__(self, progress: DistillProgress) -> None:
        """Shows the progress."""
        is_new = progress.stage != self._stage
        self._stage = progress.stage
        words = _DISTILL_WORDS.get(progress.stage, progress.stage)
        figures = format_figures(progress, ascii_only=is_ascii_only(self._console))
        if is_new:
            self._start_task(words, progress.num_steps, figures=figures)
        self._update_task(completed=progress.num_done, total=progress.num_steps, figures=figures)
        if self._prints_lines:
            now = self._clock()
            is_last = progress.num_done == progress.num_steps
            if is_new or is_last or now - self._last_line >= LINE_SECONDS:
                self._last_line = now
                self._print(f"{words}  {figures}".rstrip())


class BatchBar(_Bar):
    """Shows how many requests of a batch are done; without a terminal, a line now and then."""

    def __init__(self, console: Console, *, quiet: bool = False, clock: Callable[[], float] = monotonic) -> None:
        figures = TextColumn("{task.fields[figures]}", markup=False)
        columns = _words_column(), BarColumn(bar_width=20), MofNCompleteColumn(), figures, TimeRemainingColumn()
        super().__init__(console, *columns, is_shown=not quiet)
        self._prints_lines = not quiet and not self._is_shown
        self._clock = clock
        self._last_line = clock()

    def step(self, num_done: int, num_requests: int, figures: str) -> None:
        """Shows the state of the run. The first call starts the bar."""
        if self._task is None:
            self._start_task("answering", num_requests, figures=figures, completed=num_done)
        self._update_task(completed=num_done, figures=figures)
        if self._prints_lines and self._clock() - self._last_line >= LINE_SECONDS:
            self._last_line = self._clock()
            self._print(f"{num_done} of {num_requests} requests  {figures}".rstrip())


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


def _words_column(table_column: Column | None = None) -> TextColumn:
    return TextColumn("{task.description}", markup=False, table_column=table_column)
