"""Renders chat templates, which are untrusted code, in Jinja's sandbox; limits their time and memory.

What the templates may use is given by transformers, which their makers test with: `raise_exception`, `strftime_now`,
`tojson` without HTML escapes, loop controls, and a `generation` block that renders as its content.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

NO_TEMPLATE = "no chat template"
MAX_SECONDS = 2.0
"""Processor time. Templates of real models take milliseconds; nested ranges run for hours."""
MAX_EXTRA_BYTES = 2 * 1024**3
"""Address space above what the process uses: `'a' * 10**10` fails instead of exhausting the machine."""


def render_template(source: str, messages: Sequence[Mapping[str, str]], variables: Mapping[str, Any]) -> str:
    """Renders a conversation, up to where the model's answer begins.

    Args:
        source: Jinja source.
        messages: Role and content of each turn.
        variables: Further variables: special tokens, options of the user.

    Raises:
        Exception: Whatever the template raises. Bound its time and memory with `template_limits`.
    """
    context = {"tools": None, "documents": None, "add_generation_prompt": True, **variables}
    return _compiled(source).render(messages=[dict(message) for message in messages], **context)


@lru_cache(maxsize=8)
def _compiled(source: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.globals["namespace"] = _Namespace
    environment.globals["dict"] = lambda *arguments, **values: dict(*arguments, **values)
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment.from_string(source)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Generation(Extension):
    """The block `{% generation %}`, which marks a reply for training."""

    tags = {"generation"}  # noqa: RUF012  the name and type are Jinja's

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        # Variables that the block sets are not known after it.
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class _Namespace(Namespace):
    """Namespaces of a template: without names that could reach Python's internals."""

    def __init__(*arguments: Any, **values: Any) -> None:
        # Jinja's own signature: `self` is a valid name of a value.
        self, *given = arguments
        attributes = dict(*given, **values)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"invalid name in a namespace: {name!r}")


class TemplateLimit(Exception):
    """The template took too long."""


@contextmanager
def template_limits() -> Iterator[None]:
    """Limits the rendering inside the block, of any library: its time in the main thread, its memory on Linux.

    Raises:
        TemplateLimit: It took too long.
        MemoryError: It took too much memory.
    """
    with _memory_limit(), _time_limit():
        yield


@contextmanager
def _time_limit() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def on_alarm(*_: object) -> None:
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
