"""Turns the out-of-memory exceptions of torch into `MemoryShortageError`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from specgen.core.errors import MemoryShortageError, is_out_of_memory


@contextmanager
def memory_errors() -> Iterator[None]:
    """Converts out-of-memory exceptions: on CPU torch raises a plain RuntimeError.

    Raises:
        MemoryShortageError: Memory ran out inside the block.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        hint = "use a smaller draft, --quant nf4 or a shorter --max-new-tokens"
        raise MemoryShortageError("out of memory during generation", hint) from error
