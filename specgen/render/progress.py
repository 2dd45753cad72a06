"""Shows the progress of loading on stderr, in one line that is erased at the end."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from specgen.render.sanitize import one_line
from specgen.render.terminal import is_ascii_only


class LoadProgress:
    """Shows what is being loaded, on a terminal. Must be stopped before the first token.

    In a pipe or file it shows nothing, or with `verbose` a plain line per stage.

    Args:
        console: Console of stderr, from `make_console`.
        quiet: Show nothing.
        verbose: Print a plain line per stage instead of an animation.
    """

    def __init__(self, console: Console, *, quiet: bool = False, verbose: bool = False) -> None:
        self._console = console
        self._prints_lines = verbose and not quiet
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._wants_animation = console.is_interactive and not quiet and not verbose

    def __enter__(self) -> Self:
        if self._wants_animation:
            self._progress = _bar(self._console)
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stage(self, text: str) -> None:
        """Starts a stage, such as "loading Qwen/Qwen2.5-7B-Instruct"."""
        safe = one_line(text, ascii_only=is_ascii_only(self._console))
        if self._progress is not None:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = self._progress.add_task(safe, total=None)
        elif self._prints_lines:
            self._console.print(safe, markup=False, highlight=False, style="muted")

    def bytes(self, done: int, total: int | None) -> None:
        """Shows the progress of the stage. `total` is None while unknown."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total, has_bytes=True)

    def stop(self) -> None:
        """Erases the line and shows the cursor. Can be called again."""
        if self._progress is not None:
            self._progress.stop()
            self._progress, self._task = None, None


class _BytesColumn(DownloadColumn):
    """Shows the bytes of a stage that reported any."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.fields.get("has_bytes") else Text()


def _bar(console: Console) -> Progress:
    return Progress(
        SpinnerColumn("line" if is_ascii_only(console) else "dots"),
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
        BarColumn(bar_width=20),
        _BytesColumn(),
        console=console,
        transient=True,
        # The answer goes to stdout; Rich would redirect it to stderr while a bar is shown.
        redirect_stdout=False,
        redirect_stderr=False,
    )
