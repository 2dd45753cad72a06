"""Starts the libraries that load models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from specgen.cli.options.groups import VerbosityOptions
from specgen.cli.streams import Messages
from specgen.loading.libraries import prepare_libraries
from specgen.render.progress import LoadProgress


@contextmanager
def loading(messages: Messages, verbosity: VerbosityOptions) -> Iterator[LoadProgress]:
    """Shows progress on stderr. The libraries are prepared before the first import of one of them."""
    with LoadProgress(messages.console, quiet=verbosity.quiet, verbose=verbosity.verbose > 0) as progress:
        progress.stage("starting")
        prepare_libraries(verbosity.verbose > 1)
        yield progress
