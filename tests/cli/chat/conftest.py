"""Gives each chat test its own state folder."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_state(state: Path) -> Path:
    return state
