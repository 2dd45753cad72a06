"""The environment of every process that a test starts."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
TIMEOUT_SECONDS = 100
"""A process that runs longer hangs."""

_DROPPED = ("SPECGEN_", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "COLUMNS", "LINES", "PYTEST_", "HF_HUB_OFFLINE")
_FIXED = {
    "OMP_NUM_THREADS": "1",
    "TERM": "xterm",
    "SPECGEN_CACHE": "/proc/x",
    # With the extra gguf installed, GGUF files run on llama.cpp unless a test says otherwise.
    "SPECGEN_BACKEND": "torch",
}


def environment(**changes: str) -> dict[str, str]:
    """Returns our environment without the variables that change results: options, colours, the terminal's size."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_DROPPED)}
    return {**kept, **_FIXED, **changes}
