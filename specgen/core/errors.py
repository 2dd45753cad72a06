"""Defines the errors that end the program with their exit codes, and recognizes those of libraries.

    SpecgenError                  1
    ├── SettingsError             2
    │   └── PromptError           2
    ├── LoadError                 3
    │   ├── ModelNotFoundError    3
    │   └── ModelFileError        3
    ├── PairError                 4
    ├── DeviceError               5
    │   └── MemoryShortageError   5
    ├── DifferenceError           6
    ├── OutputError               7
    ├── NumericalError            8
    ├── LimitError                9
    ├── ServerError               10
    │   ├── ServerUnreachableError
    │   ├── ServerDeniedError
    │   └── ServerBusyError
    └── BatchError               11

`DraftError` does not end the program: the drafter failed, and the answer continues without it.
"""

from __future__ import annotations

import errno
import struct
import sys

from specgen.core.exit_codes import ExitCode

_MEMORY_TEXTS = (
    *("DefaultCPUAllocator", "out of memory", "not enough memory", "Cannot allocate memory"),
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""Texts of the plain RuntimeErrors that mean out of memory: on CPU, on MPS and in CUDA's libraries."""
_GENERAL = (LookupError, OSError, RuntimeError, TypeError, ValueError)


class SpecgenError(Exception):
    """Base class of errors that the user sees as `error: message` and, if there is one, `hint: hint`.

    Args:
        message: What is wrong, with the invalid value.
        hint: What to do about it, in one line.
    """

    exit_code: int = ExitCode.INTERNAL_ERROR
    code = "error"

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.is_reported = False
        """Whether a document on stdout already contains it."""


class SettingsError(SpecgenError):
    """An option, or a combination of options, is invalid."""

    exit_code = ExitCode.USAGE
    code = "settings"


class PromptError(SettingsError):
    """The prompt is missing, unreadable or longer than the model's window."""

    code = "prompt"


class LoadError(SpecgenError):
    """A model can't be loaded."""

    exit_code = ExitCode.LOAD
    code = "load"


class ModelNotFoundError(LoadError):
    """The model does not exist, is not accessible, or is not in the cache while offline."""

    code = "model_not_found"


class ModelFileError(LoadError):
    """A model file is corrupt, incomplete, or in a format that can contain code."""

    code = "model_file"


class PairError(SpecgenError):
    """Draft and target don't share a vocabulary."""

    exit_code = ExitCode.PAIR
    code = "draft_incompatible"


class DeviceError(SpecgenError):
    """The device, or the library that drives it, is missing or unusable."""

    exit_code = ExitCode.DEVICE
    code = "device"


class MemoryShortageError(DeviceError):
    """The device has too little free memory."""

    code = "memory"


class OutputError(SpecgenError):
    """The output can't be written to the requested place."""

    exit_code = ExitCode.OUTPUT
    code = "output"


class NumericalError(SpecgenError):
    """The target model's logits contain NaN or infinity."""

    exit_code = ExitCode.NUMERICAL
    code = "numerical"


class DifferenceError(SpecgenError):
    """A greedy text differs from the target's own by more than rounding explains."""

    exit_code = ExitCode.DIFFERENT_TEXT
    code = "different_text"


class LimitError(SpecgenError):
    """A measured figure is below the limit of `bench --fail-under-...`."""

    exit_code = ExitCode.LIMIT
    code = "limit"


class ServerError(SpecgenError):
    """A server failed, or its answer is not one."""

    exit_code = ExitCode.SERVER
    code = "server_failed"


class ServerUnreachableError(ServerError):
    """A server can't be reached, or stays silent."""

    code = "server_unreachable"


class ServerDeniedError(ServerError):
    """A server refuses the key, or wants one."""

    code = "server_denied"


class ServerBusyError(ServerError):
    """A server is still busy after the retries."""

    code = "server_busy"


class BatchError(SpecgenError):
    """Some requests of a batch could not be answered."""

    exit_code = ExitCode.BATCH
    code = "batch"


class DraftError(Exception):
    """The drafter failed. The decoding loop catches it and continues without a draft."""


def library_failures() -> tuple[type[Exception], ...]:
    """Returns the exceptions that torch, transformers, safetensors and others raise for a damaged or unsuitable model.

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
    if isinstance(error, KeyError):  # its message is the key alone, or a sentence in quotes
        text = str(error.args[0]) if error.args and " " in str(error.args[0]) else f"unknown name {text}"
    return text if len(text) <= 200 else text[:197] + "..."
