"""Configures every test run: one thread (tiny models are slower with two), deterministic hypothesis."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

import pytest

from tests import collection, profiles

__all__ = ["profiles"]

# Under TERM=dumb, as in many CI jobs, nothing has colors.
os.environ["TERM"] = "xterm-256color"

# With the extra gguf installed, GGUF files would run on llama.cpp; tests of llama.cpp set this themselves.
os.environ["SPECGEN_BACKEND"] = "torch"

# Without a card, Triton's interpreter runs the fused kernels. It must be chosen before anything imports Triton.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"
    # bitsandbytes compiles its optimizers, which no test runs: the compiler alone takes a second to import.
    os.environ["TORCHDYNAMO_DISABLE"] = "1"

# A run under nohup or in the background inherits ignored signals, and would pass them to the programs under test.
_DEFAULTS = {"SIGINT": signal.default_int_handler, "SIGHUP": signal.SIG_DFL, "SIGTERM": signal.SIG_DFL}
for _name, _default in _DEFAULTS.items():
    if hasattr(signal, _name) and signal.getsignal(getattr(signal, _name)) is signal.SIG_IGN:
        signal.signal(getattr(signal, _name), _default)


def pytest_configure(config: pytest.Config) -> None:
    # The process that hands out tests with -n runs none: without torch it is up five seconds sooner.
    is_worker = hasattr(config, "workerinput")
    if is_worker or not config.getoption("numprocesses", None):
        gc.disable()  # until all tests are collected: what is imported stays
        config.pluginmanager.import_plugin("tests.fixtures")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    collection.mark_processes(items)
    collection.mark_thorough(items)
    collection.deselect_unless_requested(config, items)


def pytest_unconfigure(config: pytest.Config) -> None:
    collection.report_long(config)
    collection.report_needs(config)
