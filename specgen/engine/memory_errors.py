"""Turns the out-of-memory exceptions of torch into `MemoryShortageError`."""

from __future__ import annotations

from types import TracebackType

from specgen.core.errors import MemoryShortageError, is_out_of_memory


class MemoryErrors:
    """A block in which out-of-memory exceptions are converted: on CPU torch raises a plain RuntimeError.

    Raises:
        MemoryShortageError: Memory ran out inside the block.
    """

    # A class: a generator with `contextmanager` takes 2 µs more, several times a round.

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and is_shortage(error):
            # In no variable of this frame: the cycle would keep the tensors of the failed pass until a collection.
            raise memory_shortage() from error


def is_shortage(error: BaseException) -> bool:
    """Returns whether an exception means that memory ran out."""
    return isinstance(error, RuntimeError | MemoryError) and is_out_of_memory(error)


def memory_shortage() -> MemoryShortageError:
    """Returns what such an exception is converted to."""
    hint = "use a smaller draft, --quant nf4 or a shorter --max-new-tokens"
    return MemoryShortageError("out of memory during generation", hint)


_ERRORS = MemoryErrors()


def memory_errors() -> MemoryErrors:
    """Returns the block."""
    return _ERRORS
