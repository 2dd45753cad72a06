"""Toy folders, made once, and a state folder per test."""

from __future__ import annotations

from pathlib import Path

import pytest

from specgen.saved_sessions import STATE_VARIABLE
from tests.chat.scenes import noisy_folder, wordy_folder
from tests.toys import save_toy


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Replies with letters and words that depend on everything said before."""
    return wordy_folder(tmp_path_factory.mktemp("models") / "toy", max_position_embeddings=4096)


@pytest.fixture(scope="session")
def other_toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A draft for `toy` that is nearly always wrong."""
    return wordy_folder(tmp_path_factory.mktemp("models") / "other", 1, max_position_embeddings=4096)


@pytest.fixture(scope="session")
def noisy_toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Replies with any bytes at all."""
    return noisy_folder(tmp_path_factory.mktemp("models") / "noisy", max_position_embeddings=4096)


@pytest.fixture(scope="session")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Replies `tests.toys.ANSWER` to everything."""
    return save_toy(tmp_path_factory.mktemp("models") / "talker", num_positions=32768)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state folder; it does not exist yet."""
    folder = tmp_path / "state"
    monkeypatch.setenv(STATE_VARIABLE, str(folder))
    return folder
