"""Exceptions of torch, transformers, safetensors and bitsandbytes: which ones to expect, and what they mean."""

from __future__ import annotations

import errno
import struct
import sys

_MEMORY_TEXTS = (
    *("DefaultCPUAllocator", "out of memory", "not enough memory", "Cannot allocate memory"),
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""Texts of the plain RuntimeErrors that mean out of memory: on CPU, on MPS and in CUDA's libraries."""
_GENERAL = (LookupError, OSError, RuntimeError, TypeError, ValueError)


def library_failures() -> tuple[type[Exception], ...]:
    """Returns the exceptions that libraries are known to raise for a damaged, unsuitable or too large model.

    Our own exceptions are not among them; `except Exception` would also hide our own mistakes.
    """
    # A library that is not imported can't have raised its exceptions.
    named = [
        getattr(sys.modules[module], name)
        for module, name in (("safetensors", "SafetensorError"), ("huggingface_hub.errors", "StrictDataclassError"))
        if module in sys.modules
    ]
    return (*named, struct.error, MemoryError, ArithmeticError, AssertionError, AttributeError, ImportError, *_GENERAL)


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether memory ran out: CUDA has an exception for it, on CPU only the text of a RuntimeError shows it."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _MEMORY_TEXTS)


def first_line(error: BaseException) -> str:
    """Returns the first line of a library's message, at most 200 characters, to be appended to our own."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if text.endswith(":") and len(lines) > 1:  # "Validation error for field 'x':", and the reason in the next line
        text = f"{text} {lines[1]}"
    if isinstance(error, KeyError):  # its message is the key alone
        text = f"unknown name {text}"
    return text if len(text) <= 200 else text[:197] + "..."
