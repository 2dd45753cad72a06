"""Lists the models and chat sessions on this machine, for completion. Loads no model library."""

from __future__ import annotations

import re
from collections.abc import Callable

from specgen.loading.names import known_names
from specgen.storage.saved_chats import LAST, SessionFolder

_SAFE_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
"""Shells expand what a completion returns, and a folder can have any name: only these names are safe."""


def model_names() -> list[str]:
    """Returns the built-in model and the models in the hub's cache."""
    return [*filter(_SAFE_NAME.fullmatch, known_names())]


def session_names() -> list[str]:
    """Returns `last`, then the saved sessions of `specgen chat`, newest first."""
    return [LAST, *filter(_SAFE_NAME.fullmatch, (entry.name for entry in SessionFolder().entries()))]


NAMES: dict[str, Callable[[], list[str]]] = {"models": model_names, "sessions": session_names}
