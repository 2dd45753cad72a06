"""Settings of every test run: one thread (tiny models are slower with two), deterministic hypothesis."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from specgen.errors import ModelNotFoundError
from specgen.loading.builtin import fetch_builtin
from specgen.loading.tokenizer import load_tokenizer

torch.set_num_threads(1)

# Where the extra gguf is installed, the programs under test would run GGUF files on llama.cpp; tests of that say so.
os.environ["SPECGEN_BACKEND"] = "transformers"

# Under nohup or as a background job a run inherits ignored signals, and so would the programs under test.
_DEFAULTS = {"SIGINT": signal.default_int_handler, "SIGHUP": signal.SIG_DFL, "SIGTERM": signal.SIG_DFL}
for _name, _default in _DEFAULTS.items():
    if hasattr(signal, _name) and signal.getsignal(getattr(signal, _name)) is signal.SIG_IGN:
        signal.signal(getattr(signal, _name), _default)

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=60, database=None)
settings.register_profile(
    "nightly", deadline=None, max_examples=5000, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("SPECGEN_HYPOTHESIS", "ci"))


@pytest.fixture(scope="session")
def smollm2_tokenizer() -> Any:
    """The tokenizer of the built-in target, if it is on this machine already."""
    try:
        return load_tokenizer(fetch_builtin(offline=True))
    except ModelNotFoundError as error:
        pytest.skip(str(error))
