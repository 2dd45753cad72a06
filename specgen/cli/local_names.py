"""Names on this machine that options take, found without the libraries that would load them."""

from __future__ import annotations

import re
from collections.abc import Callable

from specgen.loading.names import known_names

_HARMLESS = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
"""Shells expand what a completion gives them; a folder may be called anything."""


def model_names() -> list[str]:
    """The built-in model and those of the hub's cache."""
    return [*filter(_HARMLESS.fullmatch, known_names())]


def session_names() -> list[str]:
    """`last`, then the saved sessions of `specgen chat`, the newest first."""
    from specgen.storage.saved_chats import LAST, SessionFolder

    return [LAST, *filter(_HARMLESS.fullmatch, (entry.name for entry in SessionFolder().entries()))]


NAMES: dict[str, Callable[[], list[str]]] = {"models": model_names, "sessions": session_names}
