"""Recognizes out-of-memory errors among the exceptions that torch raises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from specgen.core.errors import MemoryShortageError

SHORTAGES = ("DefaultCPUAllocator", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Texts of torch's plain RuntimeErrors that mean out of memory: on CPU, on MPS and in CUDA's libraries."""


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn out-of-memory errors into `MemoryShortageError`: on CPU torch raises a plain RuntimeError.

    Raises:
        MemoryShortageError: Memory ran out inside the block.
    """
    hint = "use a smaller draft, --quant nf4 or a shorter --max-new-tokens"
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise MemoryShortageError("out of memory during generation", hint) from error
    except RuntimeError as error:
        if not any(words in str(error) for words in SHORTAGES):
            raise
        raise MemoryShortageError("out of memory during generation", hint) from error
