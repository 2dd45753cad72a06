"""Decides which backend runs a model, torch or llama.cpp. Imports neither."""

from __future__ import annotations

import importlib.util
from typing import Literal

from specgen.core.errors import DeviceError, SettingsError
from specgen.core.settings import ModelSettings
from specgen.loading.names import ModelPlace

Backend = Literal["torch", "llama.cpp"]

INSTALL_LLAMA_CPP = "install it with: pip install 'specgen-cli[gguf]', or use --backend torch"


def has_llama_cpp() -> bool:
    """Returns whether llama-cpp-python is installed. It is not imported, so it may still be broken."""
    return importlib.util.find_spec("llama_cpp") is not None


def choose_backend(settings: ModelSettings, place: ModelPlace) -> Backend:
    """Decides which backend runs a model.

    `auto` runs GGUF files on llama.cpp if it is installed, unless a compute type is requested: llama.cpp's compute
    type depends on the file's weights.

    Raises:
        SettingsError: llama.cpp is requested for a model it can't run, or with a compute type.
        DeviceError: llama.cpp is requested and not installed.
    """
    if settings.backend.name == "llama.cpp":
        if not place.is_gguf:
            raise SettingsError(
                f"--backend llama.cpp runs only GGUF files, but {place.name} is not a GGUF file",
                "omit --backend: each model then runs on the backend that supports it",
            )
        if settings.dtype != "auto":
            raise SettingsError(
                f"--dtype {settings.dtype} has no effect on llama.cpp: the file's weights decide the compute type",
                "omit it, or use --backend torch",
            )
        if not has_llama_cpp():
            raise DeviceError("llama-cpp-python is not installed", INSTALL_LLAMA_CPP)
        return "llama.cpp"
    if settings.backend.name == "auto" and place.is_gguf and settings.dtype == "auto" and has_llama_cpp():
        return "llama.cpp"
    return "torch"
