"""Limits the time and memory of a chat template. It is untrusted code, and Jinja's sandbox limits neither."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

MAX_SECONDS = 2.0
"""Processor time. Templates of real models take milliseconds; nested ranges run for hours."""
MAX_EXTRA_BYTES = 2 * 1024**3
"""Address space above what the process uses: `'a' * 10**10` fails instead of exhausting the machine."""
MAX_EXTRA_CHARS = 2**20
"""Characters that a template may add to the messages."""
MAX_COPIES = 4
"""How often a template may render each message."""


class TemplateLimit(Exception):
    """The template took too long."""


@contextmanager
def template_limits() -> Iterator[None]:
    """Limits the rendering inside the block: its time in the main thread, its memory on Linux.

    Raises:
        TemplateLimit: It took too long.
        MemoryError: It took too much memory.
    """
    with _memory_limit(), _time_limit():
        yield


def max_rendered_chars(num_content_chars: int) -> int:
    """Returns the longest prompt that a template may render from contents of this length."""
    return MAX_COPIES * num_content_chars + MAX_EXTRA_CHARS


@contextmanager
def _time_limit() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def on_alarm(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise TemplateLimit(f"it took more than {MAX_SECONDS:g} s")

    previous = signal.signal(signal.SIGVTALRM, on_alarm)
    signal.setitimer(signal.ITIMER_VIRTUAL, MAX_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)


@contextmanager
def _memory_limit() -> Iterator[None]:
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        before = resource.getrlimit(resource.RLIMIT_AS)
        limit = pages * resource.getpagesize() + MAX_EXTRA_BYTES
        if before[0] != resource.RLIM_INFINITY:
            limit = min(limit, before[0])
        resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    except (ImportError, OSError, ValueError):
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
