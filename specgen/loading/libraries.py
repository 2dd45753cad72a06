"""Prepares the model libraries before their first import: silent, and without foreign code.

Call `prepare_libraries` once, before anything imports transformers.
"""

from __future__ import annotations

import functools
import gc
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from specgen.loading.start.first_import import around_import
from specgen.loading.start.meta_kernels import meta_kernels_put_off
from specgen.loading.start.model_list import LOOKER, model_list_kept

_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_VERBOSITY": "critical",
    "TOKENIZERS_PARALLELISM": "true",
    "BITSANDBYTES_NOWELCOME": "1",
}
_TALKATIVE = ("transformers", "huggingface_hub", "bitsandbytes", "accelerate", "torch", "filelock", "httpx")


def prepare_libraries(verbose: bool) -> None:
    """Set what the libraries read at import.

    Args:
        verbose: Leave their logs and warnings on (`-vv`). Without it, a load writes nothing to stdout or stderr.
    """
    _forbid_foreign_code()
    around_import(LOOKER, model_list_kept)
    around_import("torch", meta_kernels_put_off)
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    if verbose:
        # It has no handler of its own; see specgen.loading.llama_cpp_library.
        logger = logging.getLogger("llama.cpp")
        logger.setLevel(logging.INFO)
        logger.addHandler(logging.StreamHandler())
    else:
        _silence()


@contextmanager
def gc_paused() -> Iterator[None]:
    """Load without Python's collector of cycles, and leave it nothing of what was loaded to look at.

    Importing torch and transformers makes half a million objects that stay; walking them again and again as they come
    takes a fifth of the start, and later a pause now and then between two tokens. What was left alone by an earlier
    call is looked at once more: it may have become garbage.
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
    """Spare the walk at the end of `gc_paused` what is there by now; where the collector works, do nothing.

    To be called after the imports and before weights are read. Imports leave next to no garbage; whoever made some
    since (a converted model) has it collected.
    """
    if not gc.isenabled():
        gc.freeze()


def _forbid_foreign_code() -> None:
    # A config.json can name an attention kernel on the hub, which is native code (CVE-2026-4372). None in
    # sys.modules makes `import kernels` fail, also the one bitsandbytes tries on CPU.
    os.environ["USE_HUB_KERNELS"] = "0"
    cast("dict[str, object]", sys.modules).setdefault("kernels", None)


def _silence() -> None:
    os.environ.update(_QUIET)
    for name in _TALKATIVE:
        # bitsandbytes logs "Failed to load CPU gemm_4bit_forward..." as it is imported.
        logging.getLogger(name).setLevel(logging.CRITICAL)
        warnings.filterwarnings("ignore", module=rf"{name}\b")
    # Imported before us, the environment comes too late for them.
    if (transformers_logging := _imported("transformers.utils.logging")) is not None:
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
    if (hub_bars := _imported("huggingface_hub.utils.tqdm")) is not None:
        hub_bars.disable_progress_bars()
    if (tqdm := _imported("tqdm.std")) is not None:  # torch imports it; it reads TQDM_DISABLE as it is imported
        tqdm.tqdm.__init__ = functools.partialmethod(tqdm.tqdm.__init__, disable=True)


def _imported(name: str) -> Any:
    return sys.modules.get(name)
