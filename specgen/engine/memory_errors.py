"""Converts out-of-memory errors of a library during generation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from specgen.core.errors import MemoryShortageError
from specgen.core.library_errors import is_out_of_memory


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raises `MemoryShortageError` for the out-of-memory errors of a block; other errors pass.

    Raises:
        MemoryShortageError: Memory ran out inside the block.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        hint = "use a smaller draft, --quant nf4 or a shorter --max-new-tokens"
        raise MemoryShortageError("out of memory during generation", hint) from error
