"""Defines the fixtures of all tests."""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from specgen.core.errors import ModelNotFoundError
from specgen.doctor import pass_estimate
from specgen.loading import libraries, llama_trial
from specgen.loading.builtin import fetch_builtin
from specgen.loading.gguf import model_folder
from specgen.storage.folders import STATE_VARIABLE
from specgen.text.tokenizer import load_tokenizer
from specgen.verify.checks import distribution_errors as check_sampler
from tests.cli.chat.scenes import noisy_folder, wordy_folder
from tests.fakes import NoCollections
from tests.loading.builders import make_folder
from tests.toys import save_toy

torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    # What was imported stays; scanning it again and again would take a tenth of the time.
    gc.freeze()
    # With the usual thresholds a tenth of the time of the tests went into collections.
    gc.set_threshold(50_000, 20, 50)
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def unsynced_files() -> Iterator[None]:
    """Makes files that need not outlive a power cut: a test writes hundreds, and each waits for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_collections() -> Iterator[None]:
    """Loads and converts without collections: two over all that tests import take longer than most tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(libraries, "gc", NoCollections())
        patch.setattr(model_folder, "gc", NoCollections())
        yield


@pytest.fixture(scope="session", autouse=True)
def one_llama_trial() -> Iterator[None]:
    """Computes llama.cpp's trial pass once, in a process of its own; it depends on the installed library alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama_trial, "_run", functools.cache(llama_trial._run))
        yield


@pytest.fixture(scope="session", autouse=True)
def short_timing() -> Iterator[None]:
    """Times little memory and few calls: no test depends on how fast this machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pass_estimate, "READ_BYTES", 1 << 20)
        patch.setattr(pass_estimate, "NUM_CALLS", 10)
        yield


@pytest.fixture(scope="session")
def smollm2_tokenizer() -> Any:
    """Loads the tokenizer of the built-in target, if the target is on this machine."""
    try:
        return load_tokenizer(fetch_builtin(offline=True))
    except ModelNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def distribution_errors() -> list[Any]:
    """Checks the sampler exactly, as `verify` does, once."""
    return check_sampler()


@pytest.fixture
def checked_sampler(distribution_errors: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives `verify` the results of one check of the sampler, which is the same for each pair of models."""
    monkeypatch.setattr("specgen.cli.verify.checks.distribution_errors", lambda: distribution_errors)


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes an empty specgen cache, so that no test touches the user's."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SPECGEN_CACHE", str(folder))
    return folder


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sets the state folder, which does not exist yet."""
    folder = tmp_path / "state"
    monkeypatch.setenv(STATE_VARIABLE, str(folder))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Makes a complete folder of a tiny model."""
    return make_folder(tmp_path / "tiny")


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saves a model that replies with letters and words that depend on all earlier text."""
    return wordy_folder(tmp_path_factory.mktemp("models") / "toy", max_position_embeddings=4096)


@pytest.fixture(scope="session")
def other_toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saves a draft for `toy` that is nearly always wrong."""
    return wordy_folder(tmp_path_factory.mktemp("models") / "other", 1, max_position_embeddings=4096)


@pytest.fixture(scope="session")
def noisy_toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saves a model that replies with arbitrary bytes."""
    return noisy_folder(tmp_path_factory.mktemp("models") / "noisy", max_position_embeddings=4096)


@pytest.fixture(scope="session")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saves a model that replies `tests.toys.ANSWER` to every prompt."""
    return save_toy(tmp_path_factory.mktemp("models") / "talker", num_positions=32768)
