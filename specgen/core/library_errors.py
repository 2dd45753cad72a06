"""Exceptions of torch, transformers, safetensors and bitsandbytes: which ones to expect, and what they mean."""

from __future__ import annotations

import errno
import struct
import sys

_MEMORY_TEXTS = ("DefaultCPUAllocator", "out of memory", "not enough memory", "Cannot allocate memory")


def library_failures() -> tuple[type[Exception], ...]:
    """What loading a model that is damaged, unsuitable or too large was seen to raise.

    Everything but the exceptions of the program itself; `except Exception` would hide our own mistakes as well.
    """
    # A library that nobody imported has raised nothing.
    named = [
        getattr(sys.modules[module], name)
        for module, name in (("safetensors", "SafetensorError"), ("huggingface_hub.errors", "StrictDataclassError"))
        if module in sys.modules
    ]
    return (*named, struct.error, MemoryError, ArithmeticError, AssertionError, AttributeError, ImportError, *_GENERAL)


_GENERAL = (LookupError, OSError, RuntimeError, TypeError, ValueError)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: on CUDA an exception of its own, on CPU a plain RuntimeError with a telling text."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _MEMORY_TEXTS)


def first_line(error: BaseException) -> str:
    """A library's message cut to what fits behind ours: its first line, at most 200 characters."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if text.endswith(":") and len(lines) > 1:  # "Validation error for field 'x':", and the reason below
        text = f"{text} {lines[1]}"
    if isinstance(error, KeyError):  # its message is the key alone
        text = f"unknown name {text}"
    return text if len(text) <= 200 else text[:197] + "..."
