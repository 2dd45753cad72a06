"""Configures torch, transformers and the hub client before their first import: silent, and without foreign code."""

from __future__ import annotations

import gc
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast
from urllib.parse import urlsplit

from specgen.core.cgroups import cpu_limit
from specgen.core.errors import SettingsError, first_line

INSTALL_LLAMA_CPP = "install it with: pip install 'specgen-cli[gguf]', or use --backend torch"

_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_VERBOSITY": "critical",
    "TOKENIZERS_PARALLELISM": "true",
    "BITSANDBYTES_NOWELCOME": "1",
}
_SECONDS = ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT")
_TORCH_VARIABLES = ("TORCH_LOGS", "TORCH_LOGS_FORMAT", "TORCH_LOGS_OUT")
"""Variables with which the import of torch may fail."""
_LOGGERS = ("transformers", "huggingface_hub", "bitsandbytes", "accelerate", "torch", "filelock", "httpx")


def prepare_libraries(verbose: bool) -> None:
    """Sets what the libraries read at import; to be called before anything imports transformers.

    Args:
        verbose: Keep their logs and warnings (`-vv`). Otherwise loading writes nothing to stdout or stderr.

    Raises:
        SettingsError: A library can't be imported with a variable of the environment.
    """
    forbid_foreign_code()
    check_hub_variables()
    _check_torch_variables()
    _limit_threads()
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    if verbose:
        # llama.cpp's logger has no handler of its own; see specgen.loading.llama_cpp.
        logger = logging.getLogger("llama.cpp")
        logger.setLevel(logging.INFO)
        logger.addHandler(logging.StreamHandler())
    else:
        _silence()


def has_llama_cpp() -> bool:
    """Returns whether llama-cpp-python is installed. It is not imported, so it may still be broken."""
    return importlib.util.find_spec("llama_cpp") is not None


@contextmanager
def gc_paused() -> Iterator[None]:
    """Pauses Python's garbage collector while models load, and freezes the loaded objects.

    Importing torch and transformers creates half a million permanent objects; scanning them repeatedly takes a fifth
    of the start time, and later causes pauses between tokens. Objects frozen by an earlier call are unfrozen and
    collected first, because they may be garbage by now.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        if gc.get_freeze_count():
            gc.unfreeze()
            gc.collect()
        yield
        gc.collect()
        gc.freeze()
    finally:
        if was_on:
            gc.enable()


def freeze_imported_objects() -> None:
    """Freezes the imported objects, so that the collection at the end of `gc_paused` skips them.

    To be called after the imports and before weights are read; does nothing unless the collector is paused. Imports
    leave almost no garbage; a conversion collects its own.
    """
    if not gc.isenabled():
        gc.freeze()


def forbid_foreign_code() -> None:
    """Makes the libraries run no code from the hub. Call it before the first import of transformers."""
    # A config.json can name an attention kernel on the hub, which is native code (CVE-2026-4372). None in
    # sys.modules makes `import kernels` fail, including the attempt of bitsandbytes on a CPU.
    os.environ["USE_HUB_KERNELS"] = "0"
    cast("dict[str, object]", sys.modules).setdefault("kernels", None)


def check_hub_variables() -> None:
    """Refuses what the hub client's import, and that of transformers, would fail with. Empty is as unset."""
    for name in (*_SECONDS, "HF_ENDPOINT"):
        value = os.environ.get(name)
        if value is None:
            continue
        if not value:
            del os.environ[name]
            continue
        try:
            if name in _SECONDS:
                int(value)
            else:
                _ = urlsplit(value).hostname, urlsplit(value).port
        except ValueError as error:
            valid = "a whole number of seconds" if name in _SECONDS else "an address such as https://huggingface.co"
            raise SettingsError(f"invalid {name} {value!r}: {error}", f"use {valid}, or unset it") from error


def _check_torch_variables() -> None:
    given = {name: value for name in _TORCH_VARIABLES if (value := os.environ.get(name))}
    if not given:
        return
    try:
        import torch  # noqa: F401
    except (ValueError, OSError) as error:
        names = ", ".join(f"{name}={value!r}" for name, value in given.items())
        raise SettingsError(
            f"torch can't be imported with {names}: {first_line(error)}", "correct or unset it"
        ) from error


def _limit_threads() -> None:
    """Limits the threads of torch, before its import, to the CPU time of a container.

    torch starts a thread for each core of the machine; with less CPU time they are stopped in turn at each barrier.
    """
    limit = cpu_limit()
    if limit is not None and limit < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(limit))


def _silence() -> None:
    os.environ.update(_QUIET)
    for name in _LOGGERS:
        # bitsandbytes logs "Failed to load CPU gemm_4bit_forward..." during its import.
        logging.getLogger(name).setLevel(logging.CRITICAL)
        warnings.filterwarnings("ignore", module=rf"{name}\b")
    # If they were imported before, the environment variables have no effect.
    if (transformers_logging := _imported("transformers.utils.logging")) is not None:
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
    if (hub_bars := _imported("huggingface_hub.utils.tqdm")) is not None:
        hub_bars.disable_progress_bars()


def _imported(name: str) -> Any:
    return sys.modules.get(name)
