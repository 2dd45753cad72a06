"""Defines the fixtures of the command line's tests: toy models, and the command line in the test's process."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from typer.main import get_command

from specgen.cli import connection
from specgen.cli.app import make_app, run
from specgen.loading import libraries
from specgen.runtime.servers.http import HttpOptions
from tests.cli.children import Ended
from tests.toys import save_toy

Cli = Callable[..., Ended]


@cache
def app() -> Callable[..., object]:
    """Returns what Typer makes of the app for each call; it takes longer than a refused command, so it is made once."""
    return get_command(make_app())


def without_waiting(options: HttpOptions) -> HttpOptions:
    """Connects again at once: the tests of `servers` check how long a client waits."""
    return replace(options, sleep=lambda seconds: None)


EXACT = ["--quant", "none", "--draft-quant", "none", "--dtype", "float32", "--device", "cpu"]

libraries.prepare_libraries(verbose=False)


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saves `target`, a draft that is `wrong` after one word, and a target with a context of `64` tokens."""
    root = tmp_path_factory.mktemp("toys")
    return {
        "target": save_toy(root / "target"),
        "wrong": save_toy(root / "wrong", fox=" quick"),
        "64": save_toy(root / "64", num_positions=64),
    }


@pytest.fixture(scope="session")
def toy_arguments(toys: dict[str, Path]) -> list[str]:
    """Returns options that run the toy exactly on any machine: float32, on the CPU."""
    return ["--target", str(toys["target"]), *EXACT]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Removes options from the environment and sets an empty cache."""
    for name in list(os.environ):
        if name.startswith(("SPECGEN_", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "HF_HUB_OFFLINE")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SPECGEN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def quiet_llama_cpp() -> Iterator[None]:
    """Removes what `-vv` adds to llama.cpp's logger: it writes to a stream that is closed after the test."""
    logger = logging.getLogger("llama.cpp")
    before, level = list(logger.handlers), logger.level
    yield
    logger.handlers[:] = before
    if logger.level != level:  # clears what all loggers remember, half a millisecond
        logger.setLevel(level)


@pytest.fixture
def cli(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Calls the command line in this process."""
    monkeypatch.setattr("specgen.cli.app.make_app", app)
    http = connection.http_options
    monkeypatch.setattr(connection, "http_options", lambda *args, **options: without_waiting(http(*args, **options)))

    def call(*arguments: object) -> Ended:
        capfdbinary.readouterr()
        code = run([str(argument) for argument in arguments])
        out, err = capfdbinary.readouterr()
        return Ended(code, out, err.decode())

    return call
