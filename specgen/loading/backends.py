"""Which engine runs a model: settings and a place in, `transformers` or `llama.cpp` out. Imports neither."""

from __future__ import annotations

import importlib.util
from typing import Literal

from specgen.core.errors import DeviceError, SettingsError
from specgen.core.settings import ModelSettings
from specgen.loading.names import ModelPlace

Engine = Literal["transformers", "llama.cpp"]

INSTALL_LLAMA_CPP = "install it with: pip install 'specgen-cli[gguf]', or use --backend transformers"


def has_llama_cpp() -> bool:
    """Whether the extra `gguf` is installed. It is not imported, so it may still turn out to be broken."""
    return importlib.util.find_spec("llama_cpp") is not None


def choose_backend(settings: ModelSettings, place: ModelPlace) -> Engine:
    """Decide which engine runs a model.

    `auto` gives GGUF files to llama.cpp where it is installed, unless a compute type is asked for: llama.cpp computes
    in what the file's weights call for.

    Raises:
        SettingsError: llama.cpp is asked for a model it can't run, or with a compute type.
        DeviceError: llama.cpp is asked for and not installed.
    """
    if settings.backend.name == "llama.cpp":
        if not place.is_gguf:
            raise SettingsError(
                f"--backend llama.cpp runs GGUF files, and {place.name} is none",
                "leave --backend out: each model then runs where it can",
            )
        if settings.dtype != "auto":
            raise SettingsError(
                f"--dtype {settings.dtype} can't be given to llama.cpp, which computes as the file's weights ask",
                "leave it out, or use --backend transformers",
            )
        if not has_llama_cpp():
            raise DeviceError("llama-cpp-python is not installed", INSTALL_LLAMA_CPP)
        return "llama.cpp"
    if settings.backend.name == "auto" and place.is_gguf and settings.dtype == "auto" and has_llama_cpp():
        return "llama.cpp"
    return "transformers"
