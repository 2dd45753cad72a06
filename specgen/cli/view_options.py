"""Chooses the view of an answer from `--view`, `--color`, `--sanitize` and the kind of stdout."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from specgen.render.terminal import ColorMode, is_terminal, make_console
from specgen.render.view import View
from specgen.render.views import SanitizeMode, ViewName, make_view, resolve_view


@dataclass(frozen=True, slots=True)
class ViewOptions:
    """How an answer is shown.

    Args:
        view: `--view`.
        color: `--color`.
        sanitize: `--sanitize`.
        default: The view that `auto` means on a terminal.
    """

    view: ViewName = "auto"
    color: ColorMode = "auto"
    sanitize: SanitizeMode = "auto"
    default: ViewName = "inline"

    @property
    def resolved_view(self) -> ViewName:
        """The view that `auto` means for the current stdout."""
        return resolve_view(self.view, is_terminal=is_terminal(sys.stdout), color=self.color, default=self.default)

    def new_view(self) -> View:
        """Returns a view for one answer on the current stdout."""
        return make_view(
            self.resolved_view,
            console=make_console(sys.stdout, self.color, os.environ),
            binary=sys.stdout.buffer,
            is_terminal=is_terminal(sys.stdout),
            sanitize_mode=self.sanitize,
        )
