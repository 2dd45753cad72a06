"""Defines the errors that end the program, and their exit codes. Standard library only.

    SpecgenError                  1   base of the tree; an error without a class of its own
    ├── SettingsError             2   an option or a combination of options is invalid
    │   └── PromptError           2   the prompt is missing, unreadable or too long
    ├── LoadError                 3   a model can't be loaded
    │   ├── ModelNotFoundError    3   no such model, gated, or not in the cache while offline
    │   └── ModelFileError        3   a file is corrupt, incomplete or in an unsafe format
    ├── PairError                 4   draft and target don't share a vocabulary
    ├── DeviceError               5   the device or a library for it is missing
    │   └── MemoryShortageError   5   not enough memory
    ├── DifferenceError           6   a greedy text differs from the target's own
    ├── OutputError               7   the output can't be written
    ├── NumericalError            8   the target's logits contain NaN or infinity
    └── LimitError                9   bench --fail-under-...: a measured figure is below its limit

`DraftError` does not end the program: the drafter failed, and the answer continues without it.
"""

from __future__ import annotations


class SpecgenError(Exception):
    """Base class of errors that the user sees as `error: message` and, if there is one, `hint: hint`.

    Args:
        message: What is wrong, with the invalid value.
        hint: What to do about it, in one line.
    """

    exit_code = 1
    code = "error"

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.is_reported = False
        """Whether a document on stdout already contains it."""


class SettingsError(SpecgenError):
    """An option, or a combination of options, is invalid."""

    exit_code = 2
    code = "settings"


class PromptError(SettingsError):
    """The prompt is missing, unreadable or longer than the model's window."""

    code = "prompt"


class LoadError(SpecgenError):
    """A model can't be loaded."""

    exit_code = 3
    code = "load"


class ModelNotFoundError(LoadError):
    """The model does not exist, is not accessible, or is not in the cache while offline."""

    code = "model_not_found"


class ModelFileError(LoadError):
    """A model file is corrupt, incomplete, or in a format that can contain code."""

    code = "model_file"


class PairError(SpecgenError):
    """Draft and target don't share a vocabulary."""

    exit_code = 4
    code = "draft_incompatible"


class DeviceError(SpecgenError):
    """The device, or the library that drives it, is missing or unusable."""

    exit_code = 5
    code = "device"


class MemoryShortageError(DeviceError):
    """The device has too little free memory."""

    code = "memory"


class OutputError(SpecgenError):
    """The output can't be written to the requested place."""

    exit_code = 7
    code = "output"


class NumericalError(SpecgenError):
    """The target model's logits contain NaN or infinity."""

    exit_code = 8
    code = "numerical"


class DifferenceError(SpecgenError):
    """A greedy text differs from the target's own by more than rounding explains."""

    exit_code = 6
    code = "different_text"


class LimitError(SpecgenError):
    """A measured figure is below the limit of `bench --fail-under-...`."""

    exit_code = 9
    code = "limit"


class DraftError(Exception):
    """The drafter failed. The decoding loop catches it and continues without a draft."""
