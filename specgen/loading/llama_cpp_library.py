"""Imports llama-cpp-python and sends its messages to a logger instead of stderr."""

from __future__ import annotations

import ctypes
import importlib
import logging
from collections import deque
from functools import lru_cache
from typing import Any

from specgen.core.errors import DeviceError, first_line

INSTALL_LLAMA_CPP = "install it with: pip install 'specgen-cli[gguf]', or use --backend torch"

_LEVELS = {2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}
"""Levels of ggml.h; the table in llama-cpp-python is outdated."""
_ERROR = 4
_CONTINUED = 5
_MAX_CHARS = 300

_logger = logging.getLogger("llama.cpp")
# Without a handler, Python prints warnings to stderr.
_logger.addHandler(logging.NullHandler())


class _Messages:
    """Receives llama.cpp's messages. They quote strings of the model file, so unprintable characters are removed."""

    def __init__(self) -> None:
        self.errors: deque[str] = deque(maxlen=8)
        self._level = 0

    def receive(self, level: int, text: bytes | None, _data: object) -> None:
        if level != _CONTINUED:
            self._level = level
        line = printable((text or b"").decode("utf-8", "replace"))
        if not line:
            return
        if self._level == _ERROR:
            self.errors.append(line)
        _logger.log(_LEVELS.get(self._level, logging.DEBUG), "%s", line)


messages = _Messages()
_callbacks: list[Any] = []
"""The C function that calls `messages.receive`: llama.cpp uses its address until the process ends."""


def printable(text: str) -> str:
    """Returns one line of at most 300 printable characters."""
    line = "".join(char if char.isprintable() else " " for char in text).strip()
    return line if len(line) <= _MAX_CHARS else line[: _MAX_CHARS - 3] + "..."


@lru_cache(maxsize=1)
def llama_library() -> Any:
    """Imports `llama_cpp.llama_cpp` and redirects its log.

    Raises:
        DeviceError: It is not installed or can't be loaded.
    """
    try:
        library: Any = importlib.import_module("llama_cpp.llama_cpp")
    except ImportError as error:
        raise DeviceError(f"llama-cpp-python can't be imported: {first_line(error)}", INSTALL_LLAMA_CPP) from error
    except (OSError, RuntimeError, AttributeError) as error:
        raise DeviceError(f"llama-cpp-python is unusable: {first_line(error)}", INSTALL_LLAMA_CPP) from error
    callback = library.llama_log_callback(messages.receive)
    _callbacks.append(callback)
    library.llama_log_set(callback, ctypes.c_void_p(0))
    library.llama_backend_init()
    return library
