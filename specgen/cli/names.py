"""Names on this machine that options take, found without the libraries that would load them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from specgen.loading.names import BUILT_IN_NAME

_HARMLESS = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
"""Shells expand what a completion gives them; a folder may be called anything."""


def model_names() -> list[str]:
    """The built-in model, and what the hub's cache holds with a config, as `owner/name`."""
    found = []
    for folder in _hub_cache().glob("models--*"):
        if any((snapshot / "config.json").exists() for snapshot in folder.glob("snapshots/*")):
            found.append("/".join(folder.name.split("--")[1:]))
    return [BUILT_IN_NAME, *sorted(filter(_HARMLESS.fullmatch, found), key=str.lower)]


def session_names() -> list[str]:
    """`last`, then the saved sessions of `specgen chat`, the newest first."""
    from specgen.saved_sessions import LAST, SessionFolder

    return [LAST, *filter(_HARMLESS.fullmatch, (entry.name for entry in SessionFolder().entries()))]


NAMES: dict[str, Callable[[], list[str]]] = {"models": model_names, "sessions": session_names}


def _hub_cache() -> Path:
    """As huggingface_hub finds it, whose import takes longer than a Tab may."""
    if chosen := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(os.path.expanduser(chosen))
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or os.path.join(caches, "huggingface")
    return Path(os.path.expanduser(home)) / "hub"
