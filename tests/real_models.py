"""Finds the real models of some tests: folders NAME and files NAME.gguf in the folder that SPECGEN_DEV_MODELS names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("SPECGEN_DEV_MODELS", "~/.cache/specgen-dev")).expanduser()


def real_model(name: str) -> Path:
    """Returns the path of a model; skips the test if it is not on this machine."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"no {path}; SPECGEN_DEV_MODELS names another folder of models")
    return path
